"""Oracle of `select_columns`: Python's stable sort, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["run"]


def run(sums: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B, H, G, K] and counts int32 [B, H, G]."""
    kept = min(budget, sums.shape[-1])
    rows = [sorted(sorted(range(len(row)), key=lambda j: (-row[j], j))[:kept]) for row in sums.flatten(0, 2).tolist()]
    indices = torch.tensor(rows, dtype=torch.int32, device=sums.device).reshape(*sums.shape[:3], kept)
    return indices, torch.full(sums.shape[:3], kept, dtype=torch.int32, device=sums.device)
