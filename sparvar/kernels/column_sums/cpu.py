"""`column_sums` on the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import DTYPE_CODES, call, operand, rows_contiguous
from sparvar.kernels.common.geometry import QueryTiles


def run(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int) -> Tensor:
    """Return [B, H, G, T] fp32. Arithmetic in fp32."""
    q, k, lse = rows_contiguous(q), rows_contiguous(k), lse.float().contiguous()
    (batch, heads, _, dim), keys = q.shape, k.shape[2]
    sums = q.new_empty((batch, heads, tiles.number, keys), dtype=torch.float32)
    sizes = (batch, heads, keys, dim, DTYPE_CODES[q.dtype], *tiles.grid, *tiles.tile, stride)
    pointers = (lse.data_ptr(), sums.data_ptr())
    call("sparvar_column_sums", (*operand(q), *operand(k), *sizes, *pointers, torch.get_num_threads()), scale)
    return sums
