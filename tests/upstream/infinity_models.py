"""Infinity with random weights, narrow, with its own schedules, text format and VAE."""

from __future__ import annotations

import argparse
import importlib
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.upstream.support import Case, randomise

BITS = 32
TEXT_WIDTH = 256
"""Channels of the stub text encoder: two heads of 128 in the pooling of text."""
Text = tuple[Tensor, list[int], Tensor, int]


def schedule(ratio: float = 1.0, pixels: str = "0.06M") -> list[tuple[int, int, int]]:
    """(1, h, w) of every scale, from upstream's table of aspect ratios (height over width) and sizes."""
    table = importlib.import_module("infinity.utils.dynamic_resolution").dynamic_resolution_h_w
    return [(1, h, w) for _, h, w in table[ratio][pixels]["scales"]]


def text(lengths: Sequence[int] = (7,), seed: int = 0) -> Text:
    """What upstream's ``encode_prompt`` returns, from noise: packed features, lengths, running sum, longest."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(lengths), TEXT_WIDTH, generator=generator)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return features, list(lengths), starts, max(lengths)


def narrow_vae(width: int = 32) -> nn.Module:
    """Upstream's image tokenizer of 32 bits, its convolutions ``width`` wide instead of 128."""
    module = importlib.import_module("infinity.models.bsq_vae.vae")
    module.argparse = types.SimpleNamespace(Namespace=lambda **k: argparse.Namespace(**{**k, "base_ch": width}))
    try:
        vae = module.vae_model(None, "dynamic", BITS, 2**BITS, patch_size=16, test_mode=True)
    finally:
        module.argparse = argparse
    return vae.eval().requires_grad_(False)


def infinity(
    ratio: float = 1.0,
    pixels: str = "0.06M",
    depth: int = 4,
    heads: int = 2,
    head_dim: int = 32,
    chunks: int = 2,
    **options: Any,
) -> Case:
    """Infinity as ``tools/run_infinity.py`` constructs it, narrow.

    ``run``: prompt and negative (see :func:`text`), seed, cfg (a number or a list per scale), cfg_layer, image,
    scales (a schedule).
    """
    torch.manual_seed(0)
    vae = narrow_vae()
    default = schedule(ratio, pixels)
    options = {"apply_spatial_patchify": 0, **options}
    model = importlib.import_module("infinity.models.infinity").Infinity(
        vae_local=vae, text_channels=TEXT_WIDTH, text_maxlen=64, shared_aln=True, raw_scale_schedule=None,
        checkpointing="full-block", customized_flash_attn=False, fused_norm=True, pad_to_multiplier=128,
        use_flex_attn=False, add_lvl_embeding_only_first_block=1, use_bit_label=1, rope2d_each_sa_layer=1,
        rope2d_normalized_by_hw=2, pn=pixels, inference_mode=True,
        train_h_div_w_list=[1.0], depth=depth, embed_dim=heads * head_dim, num_heads=heads, mlp_ratio=4,
        drop_path_rate=0.1, block_chunks=chunks, **options,
    )  # fmt: skip
    randomise(model)

    def run(
        prompt: Text | None = None, negative: Text | None = None, seed: int = 1, cfg: Any = 3.0, cfg_layer: int = 0,
        image: bool = False, scales: Sequence[tuple[int, int, int]] = default, **more: Any,
    ) -> Tensor | None:  # fmt: skip
        prompt = text() if prompt is None else prompt
        cfgs = cfg if isinstance(cfg, list) else [cfg] * len(scales)
        _, _, images = model.autoregressive_infer_cfg(
            vae=vae, scale_schedule=list(scales), label_B_or_BLT=prompt, B=len(prompt[1]),
            negative_label_B_or_BLT=negative, g_seed=seed, cfg_list=cfgs, tau_list=[1.0] * len(scales),
            top_k=900, top_p=0.97, returns_vemb=1, cfg_insertion_layer=[cfg_layer], vae_type=BITS, ret_img=image,
            gt_leak=0, inference_mode=True, **more,
        )  # fmt: skip
        return images.float() if image else None

    per_chunk = depth // chunks
    sites = [f"block_chunks.{layer // per_chunk}.module.{layer % per_chunk}.sa" for layer in range(depth)]
    return Case(model, run, [(h, w) for _, h, w in default], sites, heads, head_dim, vae=vae)
