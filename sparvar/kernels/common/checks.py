"""Checks of op arguments. Each raises `KernelError` naming the argument, what it must be and what it got."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparvar.errors import KernelError, message
from sparvar.kernels.common.geometry import QueryTiles, Schedule

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_DIM = 256


def fail(subject: str, must: str, got: object, remedy: str = "") -> KernelError:
    """Return the error to raise."""
    return KernelError(message(subject, must, got, remedy))


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def check_inference(op: str, arguments: Iterable[Any]) -> None:
    """The ops have no gradient: refuse inputs that want one rather than return a result without."""
    for value in arguments:
        if isinstance(value, Tensor) and value.requires_grad:
            raise fail(
                op, "be called without gradients", "an input that requires one", "use torch.no_grad() or detach it"
            )


def check_positive(**values: int) -> None:
    """Every value is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise fail(name, "be at least 1", value)


def check_attention(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """q [B, H, N, D], k and v [B, H, T, D]: same dtype and device, D a multiple of 8 up to 256."""
    if q.dim() != 4:
        raise fail("q", "have 4 dimensions [B, H, N, D]", _shape(q))
    if q.dtype not in DTYPES:
        raise fail("q", "be float32, bfloat16, float16 or float64", q.dtype)
    batch, heads, queries, dim = q.shape
    if dim % 8 or dim > MAX_DIM or dim < 8:
        raise fail("q", f"have a head dimension that is a multiple of 8 up to {MAX_DIM}", dim)
    if batch < 1 or heads < 1 or queries < 1:
        raise fail("q", "not be empty", _shape(q))
    keys = k.shape[2] if k.dim() == 4 else 0
    for name, x in (("k", k), ("v", v)):
        if x is None:
            continue
        if x.shape != (batch, heads, keys, dim):
            of_k = "" if name == "k" else f" with T = {keys} as in k"
            raise fail(name, f"be [B, H, T, D] = [{batch}, {heads}, T, {dim}]{of_k}", _shape(x))
        if x.dtype != q.dtype:
            raise fail(name, f"have the dtype of q, {q.dtype}", x.dtype, "cast q, k and v to one dtype")
        if x.device != q.device:
            raise fail(name, f"be on the device of q, {q.device}", x.device)
    if keys < 1:
        raise fail("k", "hold at least one key", _shape(k))


def check_tiles(q: Tensor, tiles: QueryTiles) -> None:
    """The queries are the tokens of the grid in raster order; tiles are not empty."""
    (grid_h, grid_w), (tile_h, tile_w) = tiles
    if grid_h < 1 or grid_w < 1 or tile_h < 1 or tile_w < 1:
        check_positive(grid_h=grid_h, grid_w=grid_w, tile_h=tile_h, tile_w=tile_w)
    if q.shape[2] != grid_h * grid_w:
        raise fail("q", f"have grid_h * grid_w = {grid_h} * {grid_w} = {grid_h * grid_w} queries", q.shape[2])


def check_columns(indices: Tensor, counts: Tensor, batch: int, heads: int, tiles: int, device: torch.device) -> None:
    """indices int32 [B', H', G, K], counts int32 [B', H', G], B' in {1, B}, H' in {1, H}. Values are not read."""
    if indices.dim() != 4 or indices.shape[3] < 1:
        raise fail("indices", "be [B', H', G, K] with K at least 1", _shape(indices))
    for name, tensor in (("indices", indices), ("counts", counts)):
        if tensor.dtype != torch.int32:
            raise fail(name, "be int32", tensor.dtype)
        if tensor.device != device:
            raise fail(name, f"be on {device}", tensor.device)
    lead = indices.shape[:3]
    if counts.shape != lead:
        raise fail("counts", f"be the shape of indices without its last dimension, {list(lead)}", _shape(counts))
    for name, size, wanted in (("batch rows", lead[0], batch), ("heads", lead[1], heads)):
        if size != 1 and size != wanted:
            raise fail("indices", f"have 1 or {wanted} {name}", size)
    if lead[2] != tiles:
        raise fail("indices", f"have one row for each of the {tiles} query tiles", lead[2])


def check_scale_number(name: str, value: int, scales: int) -> None:
    """Scales are numbered from 1."""
    if not 1 <= value <= scales:
        raise fail(name, f"be a scale number from 1 to {scales}", value)


def check_schedule(schedule: Schedule, sink_scales: int, target: int) -> None:
    """A schedule of at least `target` scales, no negative prefix, sinks within the target's keys."""
    heights, widths, prefix = schedule
    if len(heights) != len(widths):
        raise fail("widths", f"be as long as heights, {len(heights)}", len(widths))
    if not heights:
        raise fail("heights", "name at least one scale", "none")
    for name, sides in (("heights", heights), ("widths", widths)):
        for side in sides:
            if side < 1:
                raise fail(name, "be at least 1 at every scale", list(sides))
    if prefix < 0:
        raise fail("prefix", "not be negative", prefix)
    check_scale_number("target_scale", target, len(heights))
    if not 0 <= sink_scales <= target:
        raise fail("sink_scales", f"be from 0 to the target scale, {target}", sink_scales)


def attention_output(q: Tensor) -> Tensor:
    """Return an uninitialised [B, H, N, D] of the dtype of q, in memory [B, N, H, D] as SDPA returns it."""
    batch, heads, queries, dim = q.shape
    return q.new_empty((batch, queries, heads, dim)).transpose(1, 2)
