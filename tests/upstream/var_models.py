"""VAR and FlexVAR with random weights, narrow, with their own schedules and calling conventions."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.upstream import stand_ins
from tests.upstream.support import Case, randomise

VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VAR_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def choose_attention(attention: str) -> dict[str, Any]:
    """Make ``models.basic_var`` see one implementation as installed: sdpa, flash or xformers."""
    basic = importlib.import_module("models.basic_var")
    basic.flash_attn_func = stand_ins.flash_attn_func if attention == "flash" else None
    basic.memory_efficient_attention = stand_ins.memory_efficient_attention if attention == "xformers" else None
    return {"flash_if_available": attention != "sdpa", "fused_if_available": False}


def _case(
    model: nn.Module, run: Any, sides: tuple[int, ...], depth: int, heads: int, vae: nn.Module | None = None
) -> Case:
    sites = [f"blocks.{layer}.attn" for layer in range(depth)]
    return Case(model, run, [(side, side) for side in sides], sites, heads, 64, vae=vae)


def var(
    sides: tuple[int, ...] = VAR_256, depth: int = 3, heads: int = 2, attention: str = "sdpa", shared_aln: bool = False
) -> Case:
    """VAR of width 64 * heads; d36 (512 pixels) has ``shared_aln``. ``run``: batch, seed, labels, cfg, image."""
    torch.manual_seed(0)
    flags = choose_attention(attention)
    vae = importlib.import_module("models.vqvae").VQVAE(
        vocab_size=64, z_channels=8, ch=32, share_quant_resi=4, v_patch_nums=sides
    )
    model = importlib.import_module("models.var").VAR(
        vae_local=vae, num_classes=10, depth=depth, embed_dim=64 * heads, num_heads=heads,
        norm_eps=1e-6, attn_l2_norm=True, shared_aln=shared_aln, patch_nums=sides, **flags,
    )  # fmt: skip
    randomise(model)
    # The decoder of 256 pixels costs more than the narrow transformer: only tests that ask for images pay for it.
    features = lambda f_hat: f_hat.clone()  # noqa: E731
    decode = vae.fhat_to_img

    def run(
        batch: int = 1, seed: int = 1, labels: Any = None, cfg: float = 1.5, image: bool = False, **more: Any
    ) -> Tensor:
        vae.fhat_to_img = decode if image else features
        label_B = torch.arange(batch) if labels is None else labels
        return model.autoregressive_infer_cfg(B=batch, label_B=label_B, g_seed=seed, cfg=cfg, **more)

    return _case(model, run, sides, depth, heads)


def flexvar(depth: int = 3, heads: int = 2, attention: str = "sdpa", sides: tuple[int, ...] = VAR_256) -> Case:
    """FlexVAR; ``run`` takes ``sides``, the argument that sets the schedule of one generation."""
    torch.manual_seed(0)
    flags = choose_attention(attention)
    vae = importlib.import_module("models.vq_llama").VQ_models["VQ-16"](codebook_size=64, codebook_embed_dim=32)
    vae.eval().requires_grad_(False)
    default = sides
    model = importlib.import_module("models.flexvar").FlexVAR(
        vae_local=vae, num_classes=10, depth=depth, embed_dim=64 * heads, num_heads=heads,
        norm_eps=1e-6, attn_l2_norm=True, shared_aln=False, patch_nums=VAR_256, **flags,
    )  # fmt: skip
    randomise(model)
    decode = vae.decode_code
    features = lambda code, shape=None: vae.quantize.get_codebook_entry(code, shape)  # noqa: E731

    def run(
        batch: int = 1, seed: int = 1, labels: Any = None, cfg: float = 1.5, image: bool = False,
        sides: tuple[int, ...] = default, **more: Any,
    ) -> Tensor:  # fmt: skip
        vae.decode_code = decode if image else features
        label_B = torch.arange(batch) if labels is None else labels
        return model.autoregressive_infer_cfg(
            vqvae=vae, B=batch, label_B=label_B, infer_patch_nums=sides, g_seed=seed, cfg=cfg, **more
        )

    return _case(model, run, sides, depth, heads, vae)
