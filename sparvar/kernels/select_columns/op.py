"""Schema, fake, checks and dispatch of `select_columns`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_positive, fail
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.select_columns import cpu, portable

__all__ = ["select_columns"]


def _check(sums: Tensor, budget: int) -> int:
    if sums.dim() != 4 or sums.shape[3] < 1:
        raise fail("sums", "be [B, H, G, T] with T at least 1", list(sums.shape))
    if sums.dtype not in (torch.float32, torch.float64):
        raise fail("sums", "be float32", sums.dtype)
    check_positive(budget=budget)
    return min(budget, sums.shape[3])


def _gpu(sums: Tensor, *_: object) -> ModuleType | None:
    return triton_kernels("select_columns", sums.device, sums.dtype)


def _run(sums: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    kept = _check(sums, budget)
    if sums.device.type == "cpu" and sums.dtype == torch.float32 and use_native():
        return cpu.run(sums, kept)
    if (kernels := _gpu(sums)) is not None:
        result: tuple[Tensor, Tensor] = kernels.run(sums, kept)
        return result
    return portable.run(sums, kept)


def _fake(sums: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    kept = _check(sums, budget)
    indices = sums.new_empty((*sums.shape[:3], kept), dtype=torch.int32)
    return indices, sums.new_empty(sums.shape[:3], dtype=torch.int32)


_op = define("select_columns(Tensor sums, int budget) -> (Tensor, Tensor)", _run, _fake, _gpu)


def select_columns(sums: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Return the `min(budget, T)` keys with the largest sums, of equal sums those with the lower index.

    sums [B, H, G, T] fp32 -> indices int32 [B, H, G, K], ascending in every row, and counts int32 [B, H, G],
    all K (SparVAR, supplement A, step 1). Deterministic; NaN counts as the largest value.

    Raises `KernelError` on wrong shapes or dtypes or a budget below 1.
    """
    result: tuple[Tensor, Tensor] = _op(sums, budget)
    return result
