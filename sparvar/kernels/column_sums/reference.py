"""Oracle of `column_sums`: one explicit membership matrix of queries in tiles. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.geometry import QueryTiles


def run(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int = 1) -> Tensor:
    """Return [B, H, G, T] in the dtype of q."""
    (grid_h, grid_w), (tile_h, tile_w) = tiles
    across = (grid_w + tile_w - 1) // tile_w
    members: dict[int, list[int]] = {}
    sampled: dict[int, list[int]] = {}
    for n in range(grid_h * grid_w):
        y, x = divmod(n, grid_w)
        g = (y // tile_h) * across + x // tile_w
        members.setdefault(g, []).append(n)
        if (y % tile_h) % stride == 0 and (x % tile_w) % stride == 0:
            sampled.setdefault(g, []).append(n)
    weights = torch.zeros(len(members), grid_h * grid_w, dtype=q.dtype, device=q.device)
    for g, rows in sampled.items():
        weights[g, rows] = len(members[g]) / len(rows)
    mass = torch.exp(torch.einsum("bhnd,bhtd->bhnt", q, k) * scale - lse.to(q.dtype)[..., None])
    return torch.einsum("gn,bhnt->bhgt", weights, mass)
