"""Schema, fake, checks and dispatch of `column_sparse_attention`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_attention import cpu, portable
from sparvar.kernels.common.checks import (
    attention_output,
    check_attention,
    check_columns,
    check_geometry,
    check_inference,
    fail,
)
from sparvar.kernels.common.geometry import tile_count
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native

__all__ = ["column_sparse_attention"]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    grid_h: int,
    grid_w: int,
    tile_h: int,
    tile_w: int,
    correction: Tensor | None,
) -> None:
    check_attention(q, k, v)
    check_geometry(q, grid_h, grid_w, tile_h, tile_w)
    tiles = tile_count(grid_h, grid_w, tile_h, tile_w)
    check_columns(indices, counts, q.shape[0], q.shape[1], tiles, q.device)
    if correction is None:
        return
    if correction.dim() != 4 or any(correction.shape[i] != q.shape[i] for i in range(4)):
        raise fail("correction", f"be the shape of q, {list(q.shape)}", list(correction.shape))
    if correction.dtype not in (q.dtype, torch.float32):
        raise fail("correction", f"be float32 or the dtype of q, {q.dtype}", correction.dtype)
    if correction.device != q.device:
        raise fail("correction", f"be on the device of q, {q.device}", correction.device)


def _gpu(q: Tensor, *_: object) -> ModuleType | None:
    return triton_kernels("column_sparse_attention", q.device, q.dtype)


def _run(
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
    _check(q, k, v, indices, counts, grid_h, grid_w, tile_h, tile_w, correction)
    check_inference("column_sparse_attention", q, k, v, correction)
    if q.device.type == "cpu" and q.dtype != torch.float64 and use_native():
        return cpu.run(q, k, v, indices, counts, scale, grid_h, grid_w, tile_h, tile_w, correction)
    if (kernels := _gpu(q)) is not None:
        result: Tensor = kernels.run(q, k, v, indices, counts, scale, grid_h, grid_w, tile_h, tile_w, correction)
        return result
    return portable.run(q, k, v, indices, counts, scale, grid_h, grid_w, tile_h, tile_w, correction)


def _fake(
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
    _check(q, k, v, indices, counts, grid_h, grid_w, tile_h, tile_w, correction)
    return attention_output(q)


_op = define(
    "column_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, float scale, int grid_h, "
    "int grid_w, int tile_h, int tile_w, Tensor? correction=None) -> Tensor",
    _run,
    _fake,
    _gpu,
)


def column_sparse_attention(
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
    """Return attention in which every query tile sees only its kept columns.

    q [B, H, N, D] with N = grid_h * grid_w, k and v [B, H, T, D], any strides; indices int32 [B', H', G, K] and
    counts int32 [B', H', G] with B' in {1, B} and H' in {1, H}; correction [B, H, N, D], added to the result
    -> [B, H, N, D] in the dtype of q (memory [B, N, H, D]). Tile g holds tile_h x tile_w queries (fewer at the
    edges), tiles in raster order; its queries attend to keys indices[..., g, :counts[..., g]]
    (SparVAR, supplements A and B; the correction is Chipmunk's delta cache).

    Raises `KernelError` on wrong shapes, dtypes, devices or geometry, and where an index is out of range, lists are
    not strictly ascending or a count is not from 1 to K. On the CPU the lists are checked as they are read, before
    a row is touched; on other devices by asynchronous device assertions.
    """
    result: Tensor = _op(q, k, v, indices, counts, scale, grid_h, grid_w, tile_h, tile_w, correction)
    return result
