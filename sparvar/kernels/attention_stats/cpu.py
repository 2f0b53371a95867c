"""`attention_stats` on the native kernel: query tiles are runs of 128 queries, every key is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import DTYPE_CODES, call, operand, rows_contiguous
from sparvar.kernels.common.checks import attention_output

__all__ = ["run"]

QUERY_TILE = 128
EVERY_COLUMN = (0,) * 9
NO_ROWS = (0,) * 3


def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse, entropy. Arithmetic in fp32."""
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    out = attention_output(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    entropy = torch.empty_like(lse)
    batch, heads, queries, dim = q.shape
    code = DTYPE_CODES[q.dtype]
    call(
        "sparvar_attention",
        (
            *operand(q),
            *operand(k),
            *operand(v),
            *operand(out),
            *operand(None),
            batch,
            heads,
            k.shape[2],
            dim,
            code,
            code,
            1,
            queries,
            1,
            QUERY_TILE,
            1,
            *EVERY_COLUMN,
            lse.data_ptr(),
            entropy.data_ptr(),
            *NO_ROWS,
            torch.get_num_threads(),
            float(scale),
        ),
        reports=True,
    )
    return out, lse, entropy
