"""`column_sparse_attention` on the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import DTYPE_CODES, call, operand, rows_contiguous, shared
from sparvar.kernels.common.checks import attention_output

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
    correction: Tensor | None,
    starts: Tensor | None = None,
    alive: Tensor | None = None,
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q. Arithmetic in fp32.

    With ``starts`` int32 [G + 1] tile g holds the rows starts[g] to starts[g + 1] of q, whatever the grid; keys that
    ``alive`` bool [T] does not mark are left out of every list.
    """
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    if indices.stride(3) != 1:
        indices = indices.contiguous()
    if correction is not None:
        correction = rows_contiguous(correction)
    out = attention_output(q)
    batch, heads, _, dim = q.shape
    extra_dtype = q.dtype if correction is None else correction.dtype
    call(
        "sparvar_attention",
        (
            *operand(q),
            *operand(k),
            *operand(v),
            *operand(out),
            *operand(correction),
            batch,
            heads,
            k.shape[2],
            dim,
            DTYPE_CODES[q.dtype],
            DTYPE_CODES[extra_dtype],
            grid_h,
            grid_w,
            tile_h,
            tile_w,
            1,
            *shared(indices),
            *shared(counts),
            indices.shape[3],
            0,
            0,
            0 if starts is None else starts.data_ptr(),
            q.shape[2],
            0 if alive is None else alive.data_ptr(),
            torch.get_num_threads(),
            float(scale),
        ),
        reports=True,
    )
    return out
