"""HART with random weights, narrow: 300 text tokens, then the fourteen scales of a 1024-pixel image."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from tests.upstream import stand_ins
from tests.upstream.support import Case, randomise

HART_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
HART_SHORT = (1, 2, 3, 4, 5, 7, 9, 12, 16)
TEXT_TOKENS, TEXT_WIDTH = 300, 96


@contextmanager
def cuda_is_the_cpu() -> Iterator[None]:
    """HART moves tensors with ``.cuda()`` while it generates; on a machine without CUDA they stay where they are."""
    if torch.cuda.is_available():
        yield
        return
    stay = lambda self, *_, **__: self  # noqa: E731
    with patch.object(Tensor, "cuda", stay), patch.object(nn.Module, "cuda", stay):
        yield


def text(batch: int = 1, length: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """What upstream's ``encode_prompts`` returns, from noise: padded to 300 tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(TEXT_TOKENS) < length).expand(batch, -1)
    return {
        "label_B": torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        "context_mask": mask.clone(),
        "context_position_ids": mask.long().cumsum(1) - 1,
    }


def hart(sides: tuple[int, ...] = HART_SHORT, depth: int = 4, heads: int = 2, flash: bool = False) -> Case:
    """HART as its text-to-image configuration builds it: llama blocks, 2-D RoPE, text in the self-attention's cache.

    ``run``: prompt (see :func:`text`), seed, cfg, num_maskgit_iters.
    """
    torch.manual_seed(0)
    autoencoder = importlib.import_module("hart.modules.models.autoencoder")
    transformer = importlib.import_module("hart.modules.models.transformer")
    basic = importlib.import_module("hart.modules.networks.basic_hart")
    basic.flash_attn_func = stand_ins.flash_attn_func if flash else None
    config = autoencoder.HARTAutoEncoderWithDiscConfig(
        vocab_size=640, z_channels=8, ch=32, quantizer_type="var_hybrid", v_patch_nums=sides, test_mode=True
    )
    tokenizer = autoencoder.HARTAutoEncoderWithDisc(config).eval().requires_grad_(False)
    settings = transformer.HARTForT2IConfig(
        vae_path="made here", context_token=TEXT_TOKENS, context_dim=TEXT_WIDTH, depth=depth, embed_dim=64 * heads,
        num_heads=heads, attn_l2_norm=True, patch_nums=sides, mlp_type="llama", attn_type="llama", disable_aln=True,
        use_timestep_embed=True, sep_aln_pooling_mode="avg", shared_aln=True, flash_if_available=flash,
        fused_if_available=False, diff_width=64, diff_depth=2, use_context_norm=True, context_norm_scale=0.01,
    )  # fmt: skip
    with cuda_is_the_cpu(), patch.object(autoencoder.HARTAutoEncoderWithDisc, "from_pretrained", lambda *_: tokenizer):
        model = transformer.HARTForT2I(settings)
    randomise(model)
    vae = tokenizer.vae
    decode = vae.fhat_to_img
    features = lambda f_hat: f_hat.clone()  # noqa: E731

    def run(
        prompt: dict[str, Tensor] | None = None, seed: int = 1, cfg: float = 4.5, image: bool = False, **more: Any
    ) -> Tensor:
        prompt = text() if prompt is None else prompt
        vae.fhat_to_img = decode if image else features
        # The diffusion head and the order of the last scale's tokens draw from the global generators.
        torch.manual_seed(seed)
        np.random.seed(seed)
        with cuda_is_the_cpu():
            return model.autoregressive_infer_cfg(B=len(prompt["label_B"]), cfg=cfg, g_seed=seed, **prompt, **more)

    sites = [f"blocks.{layer}.attn" for layer in range(depth)]
    # The first call holds the text, and no image token where the 1x1 grid would be.
    return Case(model, run, [(side, side) for side in sides[1:]], sites, heads, 64, prefix=TEXT_TOKENS)
