"""`column_sparse_rows` on the native kernel of `column_sparse_attention`."""

from __future__ import annotations

from torch import Tensor

from sparvar.kernels.common.binding import attention
from sparvar.kernels.common.columns import Columns, KeptTokens
from sparvar.kernels.common.geometry import QueryTiles


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, kept: KeptTokens, correction: Tensor | None
) -> Tensor:
    """Return [B, H, n, D] in the dtype of q. Arithmetic in fp32."""
    starts, alive = kept
    kept = KeptTokens(starts.contiguous(), None if alive is None else alive.contiguous())
    # The geometry says how many tiles there are; which rows they hold, `starts` does.
    tiles = QueryTiles((1, columns.indices.shape[2]), (1, 1))
    return attention((q, k, v), scale, tiles, columns, correction, kept)
