"""Stands in for Infinity's helpers, with their names and arguments, on a small model of the same conventions.

Cross-attention to the text, a rotary table sliced with NumPy, fp32 keys and guidance are as in Infinity; weights are
random, and the "image" has one pixel per token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.conventions import TEXT, painter


def load_tokenizer(t5_path: str) -> tuple[object, nn.Module]:
    return object(), nn.Embedding(256, TEXT).requires_grad_(False)


def load_visual_tokenizer(args: argparse.Namespace) -> nn.Module:
    assert args.vae_type == 32
    return nn.Identity()


def load_transformer(vae: nn.Module, args: argparse.Namespace) -> nn.Module:
    assert args.pn == "1M" and args.model_type == "infinity_2b"
    return painter(cross=True, numpy=True)


def gen_one_img(
    infinity_test: Any,
    vae: nn.Module,
    text_tokenizer: object,
    text_encoder: nn.Module,
    prompt: str,
    cfg_list: float | list[float],
    tau_list: float,
    scale_schedule: Sequence[tuple[int, int, int]],
    cfg_insertion_layer: list[int],
    vae_type: int,
    gt_leak: int,
    gt_ls_Bl: None,
    g_seed: int,
    sampling_per_bits: int,
) -> Tensor:
    """Image [H, W, 3], uint8, blue first."""
    cfgs = cfg_list if isinstance(cfg_list, list) else [cfg_list] * len(scale_schedule)
    text = text_encoder(torch.tensor([list(prompt.encode())]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn = infinity_test.autoregressive_infer_cfg(
            scale_schedule=scale_schedule, text=text, B=1, g_seed=g_seed, cfg_list=cfgs
        )
    _, h, w = scale_schedule[-1]
    return (drawn[0, :, :3].float().sigmoid() * 255).byte().reshape(h, w, 3)
