"""Geometry of query tiles and scales. Plain integers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["axis_tiles", "scale_offsets", "tile_count", "tile_rectangles"]


def axis_tiles(size: int, tile: int) -> int:
    """Return how many tiles cover an axis, the last one possibly ragged."""
    return -(-size // tile)


def tile_count(grid_h: int, grid_w: int, tile_h: int, tile_w: int) -> int:
    """Return G, the number of query tiles of a grid."""
    return axis_tiles(grid_h, tile_h) * axis_tiles(grid_w, tile_w)


def tile_rectangles(grid_h: int, grid_w: int, tile_h: int, tile_w: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (y0, y1, x0, x1), ends exclusive, of every tile in raster order."""
    for y0 in range(0, grid_h, tile_h):
        for x0 in range(0, grid_w, tile_w):
            yield y0, min(y0 + tile_h, grid_h), x0, min(x0 + tile_w, grid_w)


def scale_offsets(heights: Sequence[int], widths: Sequence[int], prefix: int) -> list[int]:
    """Return the index of the first key of every scale, and behind it the total: K + 1 numbers, the first `prefix`."""
    offsets = [prefix]
    for height, width in zip(heights, widths, strict=True):
        offsets.append(offsets[-1] + height * width)
    return offsets
