"""Declaration of `column_sums`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.column_sums import cpu, portable
from sparvar.kernels.common.checks import check_attention, check_positive, check_tiles, fail
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.common.library import ByDevice, define


def _checked(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int) -> tuple[Any, ...]:
    check_attention(q, k)
    check_tiles(q, tiles)
    check_positive(stride=stride)
    if lse.shape != q.shape[:3]:
        raise fail("lse", f"be [B, H, N] = {list(q.shape[:3])}", list(lse.shape))
    if lse.dtype not in (torch.float32, torch.float64):
        raise fail("lse", "be float32", lse.dtype)
    if lse.device != q.device:
        raise fail("lse", f"be on the device of q, {q.device}", lse.device)
    return q, k, lse, scale, tiles, stride


def _empty(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], tiles.number, k.shape[2]), dtype=torch.float32)


_run = ByDevice("column_sums", cpu.run, portable.run)
_op: Callable[..., Tensor] = define(
    "column_sums(Tensor q, Tensor k, Tensor lse, float scale, int grid_h, int grid_w, int tile_h, int tile_w, "
    "int stride=1) -> Tensor",
    lambda q, k, lse, scale, grid_h, grid_w, tile_h, tile_w, stride=1: _checked(
        q, k, lse, scale, QueryTiles((grid_h, grid_w), (tile_h, tile_w)), stride
    ),
    _run,
    _empty,
    _run.gpu,
)


def column_sums(q: Tensor, k: Tensor, lse: Tensor, scale: float, tiles: QueryTiles, stride: int = 1) -> Tensor:
    """Return how much softmax mass the queries of each tile give to each key.

    q [B, H, N, D], the queries of a grid of `tiles`, k [B, H, T, D], lse [B, H, N] in nats (of `attention_stats`)
    -> [B, H, G, T] fp32: cs[g, j] = sum over the queries i of tile g of exp(scale * q_i k_j - lse_i), in the exact
    two-pass form (SparVAR, supplement A, step 1). A row sums to the tile's query count. With `stride` above 1 only
    every stride-th query of the tile in both axes is used, and the sums are scaled so that this still holds.

    Raises `KernelError` on wrong shapes, dtypes, devices or geometry.
    """
    return _op(q, k, lse, scale, *tiles.grid, *tiles.tile, stride)
