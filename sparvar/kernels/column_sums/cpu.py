"""`column_sums` on the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import DTYPE_CODES, call, operand, rows_contiguous
from sparvar.kernels.common.geometry import tile_count

__all__ = ["run"]


def run(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, grid_h: int, grid_w: int, tile_h: int, tile_w: int, stride: int
) -> Tensor:
    """Return [B, H, G, T] fp32. Arithmetic in fp32."""
    q, k, lse = rows_contiguous(q), rows_contiguous(k), lse.float().contiguous()
    batch, heads, _, dim = q.shape
    tiles = tile_count(grid_h, grid_w, tile_h, tile_w)
    sums = q.new_empty((batch, heads, tiles, k.shape[2]), dtype=torch.float32)
    call(
        "sparvar_column_sums",
        (
            *operand(q),
            *operand(k),
            batch,
            heads,
            k.shape[2],
            dim,
            DTYPE_CODES[q.dtype],
            grid_h,
            grid_w,
            tile_h,
            tile_w,
            stride,
            lse.data_ptr(),
            sums.data_ptr(),
            torch.get_num_threads(),
            float(scale),
        ),
    )
    return sums
