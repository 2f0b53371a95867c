"""Where each key of the source scale's cache goes at the target scale, and how many columns that can make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_positive, check_scale_number, check_schedule, fail
from sparvar.kernels.common.columns import Schedule, box_sizes
from sparvar.kernels.common.geometry import axis_tiles, scale_offsets

__all__ = ["INDEX_MAPS", "axis_spans", "check", "key_spans", "map_capacity", "source_tiles", "windows_of"]

INDEX_MAPS = ("identity", "relative", "footprint")


def check(
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
) -> None:
    """Raise `KernelError` where the arguments make no sense."""
    check_schedule(heights, widths, prefix, sink_scales, target_scale)
    check_scale_number("source_scale", source_scale, target_scale)
    check_positive(tile_h=tile_h, tile_w=tile_w)
    if index_map not in INDEX_MAPS:
        raise fail("index_map", f"be one of {', '.join(INDEX_MAPS)}", repr(index_map))
    if window < 0 or (window and window % 2 == 0):
        raise fail("window", "be an odd side, or 0 for none", window)


def axis_spans(source: int, target: int, index_map: str) -> list[tuple[int, int]]:
    """Return (first, length) at the target grid of every coordinate of a source axis.

    relative: floor(u * target / source) alone; footprint: from there to the floor of the next coordinate, so that
    the spans of a growing axis tile it.
    """
    first = [u * target // source for u in range(source + 1)]
    if index_map == "footprint":
        return [(a, max(b - a, 1)) for a, b in pairwise(first)]
    return [(a, 1) for a in first[:-1]]


def windows_of(target_scale: int, window: int, sink_scales: int) -> tuple[tuple[int, int], ...]:
    """Return the window at the target scale as (scale, side) pairs; none where the scale is a sink already."""
    return ((target_scale, window),) if window and target_scale > sink_scales else ()


@lru_cache(maxsize=256)
def key_spans(schedule: Schedule, source_scale: int, target_scale: int, index_map: str, sink_scales: int) -> Tensor:
    """Return int32 [T_source, 4] on the CPU: first key, rows, columns and row step at the target of each source key.

    Shared between calls: not to be written to.
    """
    heights, widths, prefix = schedule
    offsets = scale_offsets(heights, widths, prefix)
    spans = [(key, 1, 1, 0) for key in range(offsets[min(sink_scales, source_scale)])]
    for scale in range(min(sink_scales, source_scale) + 1, source_scale + 1):
        if index_map == "identity":
            spans += [(key, 1, 1, 0) for key in range(offsets[scale - 1], offsets[scale])]
            continue
        to = target_scale - (source_scale - scale)
        base, width = offsets[to - 1], widths[to - 1]
        rows = axis_spans(heights[scale - 1], heights[to - 1], index_map)
        columns = axis_spans(widths[scale - 1], widths[to - 1], index_map)
        spans += [(base + y * width + x, dy, dx, width) for y, dy in rows for x, dx in columns]
    with torch.inference_mode(False):
        return torch.tensor(spans, dtype=torch.int32, device="cpu").reshape(len(spans), 4)


@lru_cache(maxsize=256)
def source_tiles(source_grid: tuple[int, int], target_grid: tuple[int, int], tile: tuple[int, int]) -> Tensor:
    """Return the source tile of every target tile, int32 [G] on the CPU.

    Per axis round((g + 1/2) / G * G_s - 1/2), halves up (SparVAR, supplement A, step 2). Shared between calls.
    """
    axes = []
    for source, target, side in zip(source_grid, target_grid, tile, strict=True):
        count, count_source = axis_tiles(target, side), axis_tiles(source, side)
        axes.append([(2 * g + 1) * count_source // (2 * count) for g in range(count)])
    across = axis_tiles(source_grid[1], tile[1])
    with torch.inference_mode(False):
        tiles = [y * across + x for y in axes[0] for x in axes[1]]
        return torch.tensor(tiles, dtype=torch.int32, device="cpu")


@lru_cache(maxsize=256)
def _footprints(
    schedule: Schedule, source_scale: int, target_scale: int, index_map: str, sink_scales: int
) -> tuple[tuple[int, int], ...]:
    """Return (target keys of one source key, number of such source keys), the largest first, sinks left out."""
    heights, widths, _ = schedule
    areas: Counter[int] = Counter()
    for scale in range(sink_scales + 1, source_scale + 1):
        if index_map == "identity":
            areas[1] += heights[scale - 1] * widths[scale - 1]
            continue
        to = target_scale - (source_scale - scale)
        rows = Counter(length for _, length in axis_spans(heights[scale - 1], heights[to - 1], index_map))
        columns = Counter(length for _, length in axis_spans(widths[scale - 1], widths[to - 1], index_map))
        for dy, many in rows.items():
            for dx, more in columns.items():
                areas[dy * dx] += many * more
    return tuple(sorted(areas.items(), reverse=True))


def map_capacity(
    kept: int,
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
    """Return K of `map_columns` for `kept` source columns a tile: a bound from geometry that no list can exceed."""
    check(heights, widths, prefix, source_scale, target_scale, tile_h, tile_w, index_map, sink_scales, window)
    schedule = (tuple(heights[:target_scale]), tuple(widths[:target_scale]), prefix)
    mapped, left = 0, kept
    for area, keys in _footprints(schedule, source_scale, target_scale, index_map, sink_scales):
        taken = min(keys, left)  # the kept keys may be those with the largest footprints
        mapped, left = mapped + area * taken, left - taken
    offsets = scale_offsets(*schedule)
    sizes = box_sizes(schedule, target_scale, (tile_h, tile_w), windows_of(target_scale, window, sink_scales))
    return min(offsets[sink_scales] + mapped + max(sizes), offsets[target_scale])
