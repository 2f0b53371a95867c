"""Geometry of query tiles and scales, as values of plain integers: hashable, so that tables can be kept for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


def axis_tiles(size: int, tile: int) -> int:
    """Return how many tiles cover an axis, the last one possibly ragged."""
    return -(-size // tile)


class QueryTiles(NamedTuple):
    """A grid of queries in raster order, cut into tiles in raster order; those at the edges may be smaller.

    Attributes:
        grid: rows and columns of queries.
        tile: rows and columns of a tile.
    """

    grid: tuple[int, int]
    tile: tuple[int, int]

    @property
    def queries(self) -> int:
        """N, the number of queries."""
        return self.grid[0] * self.grid[1]

    @property
    def number(self) -> int:
        """G, the number of tiles."""
        return axis_tiles(self.grid[0], self.tile[0]) * axis_tiles(self.grid[1], self.tile[1])

    def rectangles(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (y0, y1, x0, x1), ends exclusive, of every tile."""
        (grid_h, grid_w), (tile_h, tile_w) = self
        for y0 in range(0, grid_h, tile_h):
            for x0 in range(0, grid_w, tile_w):
                yield y0, min(y0 + tile_h, grid_h), x0, min(x0 + tile_w, grid_w)


class Schedule(NamedTuple):
    """The grids of the scales, numbered from 1, and the number of prefix tokens in front of them in the KV cache."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    prefix: int = 0

    @classmethod
    def of(cls, grids: Iterable[tuple[int, int]], prefix: int = 0) -> Schedule:
        """Return the schedule of (height, width) pairs."""
        grids = tuple(grids)
        return cls(tuple(height for height, _ in grids), tuple(width for _, width in grids), prefix)

    def grid(self, scale: int) -> tuple[int, int]:
        """Return (height, width) of a scale."""
        return self.heights[scale - 1], self.widths[scale - 1]

    def tiles(self, scale: int, tile: tuple[int, int]) -> QueryTiles:
        """Return the query tiles of a scale."""
        return QueryTiles(self.grid(scale), tile)

    def offsets(self) -> list[int]:
        """Return the index of every scale's first key, and behind it the total: K + 1 numbers, the first `prefix`."""
        offsets = [self.prefix]
        for height, width in zip(self.heights, self.widths, strict=True):
            offsets.append(offsets[-1] + height * width)
        return offsets
