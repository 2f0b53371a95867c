"""Oracle of `column_sparse_attention`: dense attention under an explicit mask. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import QueryTiles


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, correction: Tensor | None
) -> Tensor:
    """Return attention of each query to the keys that `allowed`, bool [B, H, N, T], marks, plus `correction`."""
    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) * scale
    scores = scores.masked_fill(~allowed.to(q.device), float("-inf"))
    out = torch.einsum("bhnt,bhtd->bhnd", torch.softmax(scores, dim=-1), v)
    return out if correction is None else out + correction


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None = None
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q."""
    batch, heads, queries, _ = q.shape
    (indices, counts), ((_, grid_w), (tile_h, tile_w)) = columns, tiles
    across = (grid_w + tile_w - 1) // tile_w
    allowed = torch.zeros(batch, heads, queries, k.shape[2], dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            ib, ih = b % indices.shape[0], h % indices.shape[1]
            for n in range(queries):
                g = (n // grid_w // tile_h) * across + n % grid_w // tile_w
                allowed[b, h, n, indices[ib, ih, g, : int(counts[ib, ih, g])].long()] = True
    return masked_attention(q, k, v, allowed, scale, correction)
