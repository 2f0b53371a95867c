"""Declaration of `column_sparse_attention`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_attention import cpu, portable
from sparvar.kernels.common.checks import attention_output, check_attention, check_columns, check_tiles, fail
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.common.library import ByDevice, define


def _checked(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None
) -> tuple[Any, ...]:
    check_attention(q, k, v)
    check_tiles(q, tiles)
    check_columns(*columns, q.shape[0], q.shape[1], tiles.number, q.device)
    if correction is not None:
        if correction.shape != q.shape:
            raise fail("correction", f"be the shape of q, {list(q.shape)}", list(correction.shape))
        if correction.dtype not in (q.dtype, torch.float32):
            raise fail("correction", f"be float32 or the dtype of q, {q.dtype}", correction.dtype)
        if correction.device != q.device:
            raise fail("correction", f"be on the device of q, {q.device}", correction.device)
    return q, k, v, columns, scale, tiles, correction


_run = ByDevice("column_sparse_attention", cpu.run, portable.run)
_op: Callable[..., Tensor] = define(
    "column_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, float scale, int grid_h, "
    "int grid_w, int tile_h, int tile_w, Tensor? correction=None) -> Tensor",
    lambda q, k, v, indices, counts, scale, grid_h, grid_w, tile_h, tile_w, correction=None: _checked(
        q, k, v, Columns(indices, counts), scale, QueryTiles((grid_h, grid_w), (tile_h, tile_w)), correction
    ),
    _run,
    lambda q, *_: attention_output(q),
    _run.gpu,
)


def column_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None = None
) -> Tensor:
    """Return attention in which every query tile sees only its kept columns.

    q [B, H, N, D], the queries of a grid of `tiles`, k and v [B, H, T, D], any strides; `columns`: lists for B' in
    {1, B} rows and H' in {1, H} heads; correction [B, H, N, D], added to the result -> [B, H, N, D] in the dtype of q
    (memory [B, N, H, D]). The queries of tile g attend to keys indices[..., g, :counts[..., g]]
    (SparVAR, supplements A and B; the correction is Chipmunk's delta cache).

    Raises `KernelError` on wrong shapes, dtypes, devices or geometry, and where an index is out of range, lists are
    not strictly ascending or a count is not from 1 to K. On the CPU the lists are checked as they are read, before
    a row is touched; on other devices by asynchronous device assertions.
    """
    return _op(q, k, v, *columns, scale, *tiles.grid, *tiles.tile, correction)
