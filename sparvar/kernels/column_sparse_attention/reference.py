"""Oracle of `column_sparse_attention`: dense attention under an explicit mask. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["run"]


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    scale: float,
    grid_h: int,
    grid_w: int,
    tile_h: int,
    tile_w: int,
    correction: Tensor | None = None,
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q."""
    batch, heads, queries, _ = q.shape
    across = (grid_w + tile_w - 1) // tile_w
    allowed = torch.zeros(batch, heads, queries, k.shape[2], dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            ib, ih = b % indices.shape[0], h % indices.shape[1]
            for n in range(queries):
                g = (n // grid_w // tile_h) * across + n % grid_w // tile_w
                allowed[b, h, n, indices[ib, ih, g, : int(counts[ib, ih, g])].long()] = True
    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) * scale
    scores = scores.masked_fill(~allowed.to(q.device), float("-inf"))
    out = torch.einsum("bhnt,bhtd->bhnd", torch.softmax(scores, dim=-1), v)
    return out if correction is None else out + correction
