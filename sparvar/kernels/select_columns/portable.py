"""`select_columns` in torch ops, on any device. A stable sort, because `topk` leaves the order of ties open."""

from __future__ import annotations

import torch
from torch import Tensor


def run(sums: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B, H, G, kept] and counts int32 [B, H, G]."""
    order = torch.sort(sums, dim=-1, descending=True, stable=True).indices[..., :kept]
    indices = torch.sort(order, dim=-1).values.to(torch.int32)
    return indices, torch.full(sums.shape[:3], kept, dtype=torch.int32, device=sums.device)
