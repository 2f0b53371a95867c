"""Declaration of `select_columns`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_positive, fail
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.library import ByDevice, define
from sparvar.kernels.select_columns import cpu, portable


def _prepare(sums: Tensor, budget: int) -> tuple[Any, ...]:
    if sums.dim() != 4 or sums.shape[3] < 1:
        raise fail("sums", "be [B, H, G, T] with T at least 1", list(sums.shape))
    if sums.dtype not in (torch.float32, torch.float64):
        raise fail("sums", "be float32", sums.dtype)
    check_positive(budget=budget)
    return sums, min(budget, sums.shape[3])


def _empty(sums: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    indices = sums.new_empty((*sums.shape[:3], kept), dtype=torch.int32)
    return indices, sums.new_empty(sums.shape[:3], dtype=torch.int32)


_run = ByDevice("select_columns", cpu.run, portable.run, dtypes=(torch.float32,))
_op: Callable[..., tuple[Tensor, Tensor]] = define(
    "select_columns(Tensor sums, int budget) -> (Tensor, Tensor)", _prepare, _run, _empty, _run.gpu, gradients=True
)


def select_columns(sums: Tensor, budget: int) -> Columns:
    """Return the `min(budget, T)` keys with the largest sums, of equal sums those with the lower index.

    sums [B, H, G, T] fp32 -> lists of K keys each, ascending (SparVAR, supplement A, step 1). Deterministic; NaN
    counts as the largest value.

    Raises `KernelError` on wrong shapes or dtypes or a budget below 1.
    """
    return Columns(*_op(sums, budget))
