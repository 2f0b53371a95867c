"""Where each key of the source scale's cache goes at the target scale, and how many columns that can make."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_positive, check_scale_number, check_schedule, fail
from sparvar.kernels.common.columns import Windows, box_sizes, window_boxes
from sparvar.kernels.common.geometry import QueryTiles, Schedule, axis_tiles

INDEX_MAPS = ("identity", "relative", "footprint")


class ColumnMap(NamedTuple):
    """How the columns kept at one scale are carried to a later one.

    Attributes:
        schedule: scales 1 to `target_scale` or longer.
        source_scale: the scale at which columns were kept.
        target_scale: the scale to which they are carried.
        tile: rows and columns of a query tile, at both scales.
        index_map: `identity`, `relative` or `footprint`, see `map_columns`.
        sink_scales: how many first scales are in every list, whole.
        window: the odd side of the window at the target scale, 0 for none.
    """

    schedule: Schedule
    source_scale: int
    target_scale: int
    tile: tuple[int, int]
    index_map: str
    sink_scales: int
    window: int

    @property
    def sources(self) -> QueryTiles:
        """The query tiles of the source scale."""
        return self.schedule.tiles(self.source_scale, self.tile)

    @property
    def targets(self) -> QueryTiles:
        """The query tiles of the target scale."""
        return self.schedule.tiles(self.target_scale, self.tile)

    @property
    def windows(self) -> Windows:
        """The window at the target scale; none where that scale is a sink already."""
        return ((self.target_scale, self.window),) if self.window and self.target_scale > self.sink_scales else ()

    def check(self) -> None:
        """Raise `KernelError` where the values make no sense."""
        check_schedule(self.schedule, self.sink_scales, self.target_scale)
        check_scale_number("source_scale", self.source_scale, self.target_scale)
        check_positive(tile_h=self.tile[0], tile_w=self.tile[1])
        if self.index_map not in INDEX_MAPS:
            raise fail("index_map", f"be one of {', '.join(INDEX_MAPS)}", repr(self.index_map))
        if self.window < 0 or (self.window and self.window % 2 == 0):
            raise fail("window", "be an odd side, or 0 for none", self.window)


class MapTables(NamedTuple):
    """A column map in keys, on the CPU. Shared between calls: not to be written to."""

    spans: Tensor  # int32 [T_source, 4]: first key, rows, columns and row step at the target of each source key
    sources: Tensor  # int32 [G]: the source tile of every target tile
    boxes: Tensor  # int32 [G, 0 or 1, 6]: the tile's window, see `window_boxes`
    sinks: int  # first keys, in every list
    total: int  # keys at the target scale


def axis_spans(source: int, target: int, index_map: str) -> list[tuple[int, int]]:
    """Return (first, length) at the target grid of every coordinate of a source axis.

    relative: floor(u * target / source) alone; footprint: from there to the floor of the next coordinate, so that
    the spans of a growing axis tile it.
    """
    first = [u * target // source for u in range(source + 1)]
    if index_map == "footprint":
        return [(a, max(b - a, 1)) for a, b in pairwise(first)]
    return [(a, 1) for a in first[:-1]]


def key_spans(mapping: ColumnMap) -> list[tuple[int, int, int, int]]:
    """Return first key, rows, columns and row step at the target of each key of the source scale's cache."""
    (_, widths, _), source_scale = mapping.schedule, mapping.source_scale
    offsets = mapping.schedule.offsets()
    spans = [(key, 1, 1, 0) for key in range(offsets[min(mapping.sink_scales, source_scale)])]
    for scale in range(min(mapping.sink_scales, source_scale) + 1, source_scale + 1):
        if mapping.index_map == "identity":
            spans += [(key, 1, 1, 0) for key in range(offsets[scale - 1], offsets[scale])]
            continue
        to = mapping.target_scale - (source_scale - scale)
        base, width = offsets[to - 1], widths[to - 1]
        rows, columns = _axes(mapping, scale, to)
        spans += [(base + y * width + x, dy, dx, width) for y, dy in rows for x, dx in columns]
    return spans


def _axes(mapping: ColumnMap, scale: int, to: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return `axis_spans` of both axes from one scale to another."""
    rows, columns = (
        axis_spans(source, target, mapping.index_map)
        for source, target in zip(mapping.schedule.grid(scale), mapping.schedule.grid(to), strict=True)
    )
    return rows, columns


def _source_tiles(mapping: ColumnMap) -> list[int]:
    """Return the source tile of every target tile.

    Per axis round((g + 1/2) / G * G_s - 1/2), halves up (SparVAR, supplement A, step 2).
    """
    axes = []
    for source, target, side in zip(mapping.sources.grid, mapping.targets.grid, mapping.tile, strict=True):
        count, count_source = axis_tiles(target, side), axis_tiles(source, side)
        axes.append([(2 * g + 1) * count_source // (2 * count) for g in range(count)])
    across = axis_tiles(mapping.sources.grid[1], mapping.tile[1])
    return [y * across + x for y in axes[0] for x in axes[1]]


@lru_cache(maxsize=256)
def map_tables(mapping: ColumnMap) -> MapTables:
    """Return the tables of one map."""
    spans, offsets = key_spans(mapping), mapping.schedule.offsets()
    with torch.inference_mode(False):
        return MapTables(
            torch.tensor(spans, dtype=torch.int32, device="cpu").reshape(len(spans), 4),
            torch.tensor(_source_tiles(mapping), dtype=torch.int32, device="cpu"),
            window_boxes(mapping.schedule, mapping.targets, mapping.windows),
            offsets[mapping.sink_scales],
            offsets[mapping.target_scale],
        )


class _Bounds(NamedTuple):
    areas: list[tuple[int, int]]  # (target keys of one source key, number of such source keys), largest first
    fixed: int  # most keys of a list that are sinks or in the tile's window
    total: int


def _footprints(mapping: ColumnMap) -> list[tuple[int, int]]:
    """Return `_Bounds.areas`, sinks left out."""
    heights, widths, _ = mapping.schedule
    areas: Counter[int] = Counter()
    for scale in range(mapping.sink_scales + 1, mapping.source_scale + 1):
        if mapping.index_map == "identity":
            areas[1] += heights[scale - 1] * widths[scale - 1]
            continue
        rows, columns = (
            Counter(length for _, length in axis)
            for axis in _axes(mapping, scale, mapping.target_scale - (mapping.source_scale - scale))
        )
        for dy, many in rows.items():
            for dx, more in columns.items():
                areas[dy * dx] += many * more
    return sorted(areas.items(), reverse=True)


@lru_cache(maxsize=256)
def _bounds(mapping: ColumnMap) -> _Bounds:
    mapping.check()
    offsets = mapping.schedule.offsets()
    windows = max(box_sizes(mapping.schedule, mapping.targets, mapping.windows))
    fixed = offsets[mapping.sink_scales] + windows
    return _Bounds(_footprints(mapping), fixed, offsets[mapping.target_scale])


def map_capacity(kept: int, mapping: ColumnMap) -> int:
    """Return K of `map_columns` for `kept` source columns a tile: a bound from geometry that no list can exceed.

    Raises `KernelError` where the map makes no sense.
    """
    bounds = _bounds(mapping)
    mapped, left = 0, kept
    for area, keys in bounds.areas:
        taken = min(keys, left)  # the kept keys may be those with the largest footprints
        mapped, left = mapped + area * taken, left - taken
    return min(bounds.fixed + mapped, bounds.total)
