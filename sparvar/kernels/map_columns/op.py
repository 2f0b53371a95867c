"""Schema, fake, checks and dispatch of `map_columns`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from sparvar.kernels.common.checks import check_columns
from sparvar.kernels.common.geometry import tile_count
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.map_columns import cpu, portable
from sparvar.kernels.map_columns.spans import map_capacity

__all__ = ["map_capacity", "map_columns"]


def _check(
    indices: Tensor,
    counts: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    prefix: int,
    source_scale: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    index_map: str,
    sink_scales: int,
    window: int,
) -> int:
    kept = indices.shape[-1] if indices.dim() == 4 else 1
    capacity = map_capacity(
        kept, heights, widths, prefix, source_scale, target_scale, tile_h, tile_w, index_map, sink_scales, window
    )
    tiles = tile_count(heights[source_scale - 1], widths[source_scale - 1], tile_h, tile_w)
    batch, heads = (indices.shape[0], indices.shape[1]) if indices.dim() == 4 else (1, 1)
    check_columns(indices, counts, batch, heads, tiles, indices.device)
    return capacity


def _run(
    indices: Tensor,
    counts: Tensor,
    heights: list[int],
    widths: list[int],
    prefix: int,
    source_scale: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    index_map: str,
    sink_scales: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    capacity = _check(
        indices,
        counts,
        heights,
        widths,
        prefix,
        source_scale,
        target_scale,
        tile_h,
        tile_w,
        index_map,
        sink_scales,
        window,
    )
    schedule = (tuple(heights[:target_scale]), tuple(widths[:target_scale]), prefix)
    run: Callable[..., tuple[Tensor, Tensor]] = portable.run
    if indices.device.type == "cpu" and use_native():
        run = cpu.run
    elif (kernels := triton_kernels("map_columns", indices.device, indices.dtype)) is not None:
        run = kernels.run
    return run(
        indices,
        counts,
        schedule,
        source_scale,
        target_scale,
        (tile_h, tile_w),
        index_map,
        sink_scales,
        window,
        capacity,
    )


def _fake(
    indices: Tensor,
    counts: Tensor,
    heights: list[int],
    widths: list[int],
    prefix: int,
    source_scale: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    index_map: str,
    sink_scales: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    capacity = _check(
        indices,
        counts,
        heights,
        widths,
        prefix,
        source_scale,
        target_scale,
        tile_h,
        tile_w,
        index_map,
        sink_scales,
        window,
    )
    tiles = tile_count(heights[target_scale - 1], widths[target_scale - 1], tile_h, tile_w)
    lead = (*indices.shape[:2], tiles)
    return indices.new_empty((*lead, capacity)), indices.new_empty(lead)


# Opaque to tracers, also on GPUs: its tables are tensors kept per schedule, which no traced graph can hold.
_op = define(
    "map_columns(Tensor indices, Tensor counts, int[] heights, int[] widths, int prefix, int source_scale, "
    "int target_scale, int tile_h, int tile_w, str index_map, int sink_scales, int window) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def map_columns(
    indices: Tensor,
    counts: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    prefix: int,
    source_scale: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    index_map: str,
    sink_scales: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Return the columns of the decision scale carried to a later scale (SparVAR, supplement A, steps 2 to 4).

    indices int32 [B', H', G_source, K_source] and counts int32 [B', H', G_source] at scale `source_scale`; heights,
    widths: the schedule, scales 1 to target_scale or longer; tile_h, tile_w: query tiles at both scales
    -> indices int32 [B', H', G, K] and counts int32 [B', H', G], rows ascending and unique, K as `map_capacity` says.

    A target tile takes the list of the source tile at its place. With S = source and k = target, key (u, v) of scale
    l becomes, after `index_map`: `identity`: the same key; `relative`: (floor(u h'/h), floor(v w'/w)) of scale
    l' = k - (S - l); `footprint`: the whole area of that cell at l', from there to the next cell's corner. Prefix and
    the tokens of the first `sink_scales` scales stay themselves and are in every list. `window` adds, at the target
    scale, the odd square around each query of the tile (0: none).

    Raises `KernelError` on wrong shapes, scales or geometry; on the CPU also on indices or counts out of range,
    which on GPUs fail an assertion on the device.
    """
    result: tuple[Tensor, Tensor] = _op(
        indices,
        counts,
        list(heights),
        list(widths),
        prefix,
        source_scale,
        target_scale,
        tile_h,
        tile_w,
        index_map,
        sink_scales,
        window,
    )
    return result
