"""Oracle of `select_columns`: Python's stable sort, row by row."""

from __future__ import annotations

from math import isnan

import torch
from torch import Tensor


def _largest(row: list[float], kept: int) -> list[int]:
    # NaN is the largest value and equals itself
    order = sorted(range(len(row)), key=lambda j: (0, 0.0, j) if isnan(row[j]) else (1, -row[j], j))
    return sorted(order[:kept])


def run(sums: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B, H, G, K] and counts int32 [B, H, G]."""
    kept = min(budget, sums.shape[-1])
    rows = [_largest(row, kept) for row in sums.flatten(0, 2).tolist()]
    indices = torch.tensor(rows, dtype=torch.int32, device=sums.device).reshape(*sums.shape[:3], kept)
    return indices, torch.full(sums.shape[:3], kept, dtype=torch.int32, device=sums.device)
