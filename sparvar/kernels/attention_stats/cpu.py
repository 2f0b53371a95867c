"""`attention_stats` on the native kernel: query tiles are runs of 128 queries, every key is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import attention
from sparvar.kernels.common.geometry import QueryTiles

QUERY_TILE = 128


def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse, entropy. Arithmetic in fp32."""
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    entropy = torch.empty_like(lse)
    tiles = QueryTiles((1, q.shape[2]), (1, QUERY_TILE))
    return attention((q, k, v), scale, tiles, stats=(lse, entropy)), lse, entropy
