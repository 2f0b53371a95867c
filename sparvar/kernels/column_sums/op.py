"""Schema, fake, checks and dispatch of `column_sums`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparvar.kernels.column_sums import cpu, portable
from sparvar.kernels.common.checks import check_attention, check_geometry, check_inference, check_positive, fail
from sparvar.kernels.common.geometry import tile_count
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native

__all__ = ["column_sums"]


def _check(q: Tensor, k: Tensor, lse: Tensor, grid_h: int, grid_w: int, tile_h: int, tile_w: int, stride: int) -> None:
    check_attention(q, k)
    check_geometry(q, grid_h, grid_w, tile_h, tile_w)
    check_positive(stride=stride)
    if lse.dim() != 3 or any(lse.shape[i] != q.shape[i] for i in range(3)):
        raise fail("lse", f"be [B, H, N] = {list(q.shape[:3])}", list(lse.shape))
    if lse.dtype not in (torch.float32, torch.float64):
        raise fail("lse", "be float32", lse.dtype)
    if lse.device != q.device:
        raise fail("lse", f"be on the device of q, {q.device}", lse.device)


def _gpu(q: Tensor, *_: object) -> ModuleType | None:
    return triton_kernels("column_sums", q.device, q.dtype)


def _run(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, grid_h: int, grid_w: int, tile_h: int, tile_w: int, stride: int = 1
) -> Tensor:
    _check(q, k, lse, grid_h, grid_w, tile_h, tile_w, stride)
    check_inference("column_sums", q, k, lse)
    if q.device.type == "cpu" and q.dtype != torch.float64 and use_native():
        return cpu.run(q, k, lse, scale, grid_h, grid_w, tile_h, tile_w, stride)
    if (kernels := _gpu(q)) is not None:
        result: Tensor = kernels.run(q, k, lse, scale, grid_h, grid_w, tile_h, tile_w, stride)
        return result
    return portable.run(q, k, lse, scale, grid_h, grid_w, tile_h, tile_w, stride)


def _fake(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, grid_h: int, grid_w: int, tile_h: int, tile_w: int, stride: int = 1
) -> Tensor:
    _check(q, k, lse, grid_h, grid_w, tile_h, tile_w, stride)
    tiles = tile_count(grid_h, grid_w, tile_h, tile_w)
    return q.new_empty((q.shape[0], q.shape[1], tiles, k.shape[2]), dtype=torch.float32)


_op = define(
    "column_sums(Tensor q, Tensor k, Tensor lse, float scale, int grid_h, int grid_w, int tile_h, int tile_w, "
    "int stride=1) -> Tensor",
    _run,
    _fake,
    _gpu,
)


def column_sums(
    q: Tensor, k: Tensor, lse: Tensor, scale: float, grid_h: int, grid_w: int, tile_h: int, tile_w: int, stride: int = 1
) -> Tensor:
    """Return how much softmax mass the queries of each tile give to each key.

    q [B, H, N, D] with N = grid_h * grid_w, k [B, H, T, D], lse [B, H, N] in nats (of `attention_stats`)
    -> [B, H, G, T] fp32: cs[g, j] = sum over the queries i of tile g of exp(scale * q_i k_j - lse_i), in the exact
    two-pass form (SparVAR, supplement A, step 1). A row sums to the tile's query count. With `stride` above 1 only
    every stride-th query of the tile in both axes is used, and the sums are scaled so that this still holds.

    Raises `KernelError` on wrong shapes, dtypes, devices or geometry.
    """
    result: Tensor = _op(q, k, lse, scale, grid_h, grid_w, tile_h, tile_w, stride)
    return result
