"""What `map_columns` and `local_columns` share: rectangles of keys around query tiles, and lists from masks."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sparvar.kernels.common.geometry import axis_tiles, scale_offsets

__all__ = ["Schedule", "box_sizes", "mask_boxes", "mask_to_lists", "window_boxes", "window_ranges"]

Schedule = tuple[tuple[int, ...], tuple[int, ...], int]  # heights, widths, prefix


@lru_cache(maxsize=1024)
def window_ranges(queries: int, keys: int, tile: int, window: int) -> tuple[tuple[int, int], ...]:
    """Return, per tile of one axis, the range of keys (end exclusive) that its queries' windows cover.

    The window of query y is `window` (odd) keys around floor(y * keys / queries + 1/2), clipped to the axis
    (SparVAR, supplement B). The range is the hull of the tile's windows.
    """
    reach = window // 2

    def centre(y: int) -> int:
        return min((2 * y * keys + queries) // (2 * queries), keys - 1)

    ranges = []
    for first in range(0, queries, tile):
        last = min(first + tile, queries) - 1
        ranges.append((max(centre(first) - reach, 0), min(centre(last) + reach, keys - 1) + 1))
    return tuple(ranges)


def _boxes_of_scale(
    schedule: Schedule, target: int, tile: tuple[int, int], scale: int, window: int
) -> list[tuple[int, int, int, int]]:
    """Return (y0, y1, x0, x1) of every tile of the target grid at one scale, ends exclusive."""
    heights, widths, _ = schedule
    rows = window_ranges(heights[target - 1], heights[scale - 1], tile[0], window)
    columns = window_ranges(widths[target - 1], widths[scale - 1], tile[1], window)
    return [(*row, *column) for row in rows for column in columns]


@lru_cache(maxsize=256)
def box_sizes(
    schedule: Schedule, target: int, tile: tuple[int, int], windows: tuple[tuple[int, int], ...]
) -> tuple[int, ...]:
    """Return, per tile, the number of keys in its rectangles. `windows` holds (scale, odd side)."""
    heights, widths, _ = schedule
    tiles = axis_tiles(heights[target - 1], tile[0]) * axis_tiles(widths[target - 1], tile[1])
    sizes = [0] * tiles
    for scale, window in windows:
        for g, (y0, y1, x0, x1) in enumerate(_boxes_of_scale(schedule, target, tile, scale, window)):
            sizes[g] += (y1 - y0) * (x1 - x0)
    return tuple(sizes)


@lru_cache(maxsize=256)
def window_boxes(
    schedule: Schedule, target: int, tile: tuple[int, int], windows: tuple[tuple[int, int], ...]
) -> Tensor:
    """Return the rectangles of every tile, int32 [G, len(windows), 6] on the CPU: base, width, y0, y1, x0, x1.

    Key (y, x) of a rectangle's scale is `base + y * width + x`. Shared between calls: not to be written to.
    """
    heights, widths, prefix = schedule
    offsets = scale_offsets(heights, widths, prefix)
    per_scale = []
    for scale, window in windows:
        head = (offsets[scale - 1], widths[scale - 1])
        per_scale.append([(*head, *box) for box in _boxes_of_scale(schedule, target, tile, scale, window)])
    tiles = axis_tiles(heights[target - 1], tile[0]) * axis_tiles(widths[target - 1], tile[1])
    with torch.inference_mode(False):
        rows = [list(boxes) for boxes in zip(*per_scale, strict=True)] or [[]] * tiles
        return torch.tensor(rows, dtype=torch.int32, device="cpu").reshape(tiles, len(windows), 6)


def mask_boxes(boxes: Tensor, total: int, sinks: int) -> Tensor:
    """Return a mask, bool [G, total] on the CPU, of the first `sinks` keys and the rectangles of every tile."""
    mask = torch.zeros(boxes.shape[0], total, dtype=torch.bool, device="cpu")
    mask[:, :sinks] = True
    for row, rectangles in zip(mask, boxes.tolist(), strict=True):
        for base, width, y0, y1, x0, x1 in rectangles:
            row[base + y0 * width : base + y1 * width].view(y1 - y0, width)[:, x0:x1] = True
    return mask


def mask_to_lists(mask: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Return the set positions of bool [..., T] in ascending order, int32 [..., capacity], and their counts."""
    counts = mask.sum(dim=-1, dtype=torch.int32)
    place = (mask.cumsum(dim=-1) - 1).masked_fill(~mask, capacity)  # unset positions go to a slot that is cut off
    keys = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.int32).expand(mask.shape)
    lists = torch.zeros((*mask.shape[:-1], capacity + 1), dtype=torch.int32, device=mask.device)
    lists.scatter_(-1, place, keys)
    return lists[..., :capacity].contiguous(), counts
