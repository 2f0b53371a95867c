"""`column_sparse_attention` on the native kernel."""

from __future__ import annotations

from torch import Tensor

from sparvar.kernels.common.binding import attention
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import QueryTiles


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q. Arithmetic in fp32."""
    return attention((q, k, v), scale, tiles, columns, correction)
