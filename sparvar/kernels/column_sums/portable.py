"""`column_sums` in torch ops, on any device: one tile at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.geometry import QueryTiles


def run(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int) -> Tensor:
    """Return [B, H, G, T] fp32. Arithmetic in fp32, or float64 for float64 inputs."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = k.to(wide).transpose(2, 3)
    grid, normaliser = q.unflatten(2, tiles.grid), lse.unflatten(2, tiles.grid)
    sums = q.new_empty((*q.shape[:2], tiles.number, k.shape[2]), dtype=torch.float32)
    for g, (y0, y1, x0, x1) in enumerate(tiles.rectangles()):
        rows = grid[:, :, y0:y1:stride, x0:x1:stride].flatten(2, 3).to(wide) * scale
        log_sum = normaliser[:, :, y0:y1:stride, x0:x1:stride].flatten(2, 3).to(wide)
        weight = (y1 - y0) * (x1 - x0) / rows.shape[2]
        sums[:, :, g] = ((rows @ keys - log_sum[..., None]).exp().sum(dim=2) * weight).float()
    return sums
