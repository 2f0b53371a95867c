"""Column lists, and what `map_columns` and `local_columns` share to make them: rectangles around query tiles."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.geometry import QueryTiles, Schedule
from sparvar.kernels.common.torch_compat import assert_on_device

Windows = tuple[tuple[int, int], ...]  # (scale, odd side)


class Columns(NamedTuple):
    """The keys that every query tile attends to, ascending.

    Attributes:
        indices: int32 [B', H', G, K], B' in {1, B}, H' in {1, H}; entries behind a list's end mean nothing.
        counts: int32 [B', H', G], the length of every list.
    """

    indices: Tensor
    counts: Tensor

    def packed(self) -> Columns:
        """Return the same lists, each contiguous; copied only where they are not."""
        return self if self.indices.stride(3) == 1 else Columns(self.indices.contiguous(), self.counts)

    def used(self) -> Tensor:
        """Return which entries belong to a list, bool [B', H', G, K]."""
        return torch.arange(self.indices.shape[3], device=self.indices.device) < self.counts[..., None]


class KeptTokens(NamedTuple):
    """Which tokens exist where others were pruned.

    Attributes:
        starts: int32 [G + 1], from 0 to the number of queries: tile g's queries are rows starts[g] to starts[g + 1].
        alive: bool [T], the keys that exist; None: all.
    """

    starts: Tensor
    alive: Tensor | None = None


def check_lists(columns: Columns, keys: int, ascending: bool) -> Tensor:
    """Refuse lists that name keys that do not exist or, where `ascending`, are not ascending; return `used()`.

    On the CPU the lists are read and `KernelError` is raised; elsewhere it is an assertion on the device, for which the
    host does not wait.
    """
    (indices, counts), used = columns, columns.used()
    wanted = [
        ((counts >= 1) & (counts <= indices.shape[3]), "counts", "be from 1 to the capacity of indices"),
        ((indices >= 0) & (indices < keys) | ~used, "indices", f"name keys that exist, 0 to {keys - 1}"),
    ]
    if ascending:
        steps = (indices[..., 1:] > indices[..., :-1]) | ~used[..., 1:]
        wanted.append((steps, "indices", "be ascending without duplicates"))
    for good, subject, must in wanted:
        if indices.device.type == "cpu":
            if not bool(good.all()):
                raise fail(subject, must, f"something else at {(~good).nonzero()[0].tolist()}")
        else:  # without waiting for the device
            assert_on_device(good.all(), f"{subject}: must {must}")
    return used


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


def _boxes_of_scale(tiles: QueryTiles, keys: tuple[int, int], window: int) -> list[tuple[int, int, int, int]]:
    """Return (y0, y1, x0, x1) of every tile in a grid of keys, ends exclusive."""
    rows, columns = (window_ranges(*axis, window) for axis in zip(tiles.grid, keys, tiles.tile, strict=True))
    return [(*row, *column) for row in rows for column in columns]


@lru_cache(maxsize=256)
def box_sizes(schedule: Schedule, tiles: QueryTiles, windows: Windows) -> tuple[int, ...]:
    """Return, per tile, the number of keys in its rectangles. `windows` holds (scale, odd side)."""
    sizes = [0] * tiles.number
    for scale, window in windows:
        for g, (y0, y1, x0, x1) in enumerate(_boxes_of_scale(tiles, schedule.grid(scale), window)):
            sizes[g] += (y1 - y0) * (x1 - x0)
    return tuple(sizes)


@lru_cache(maxsize=256)
def window_boxes(schedule: Schedule, tiles: QueryTiles, windows: Windows) -> Tensor:
    """Return the rectangles of every tile, int32 [G, len(windows), 6] on the CPU: base, width, y0, y1, x0, x1.

    Key (y, x) of a rectangle's scale is `base + y * width + x`. Shared between calls: not to be written to.
    """
    offsets = schedule.offsets()
    per_scale = []
    for scale, window in windows:
        head = (offsets[scale - 1], schedule.widths[scale - 1])
        per_scale.append([(*head, *box) for box in _boxes_of_scale(tiles, schedule.grid(scale), window)])
    with torch.inference_mode(False):
        rows = [list(boxes) for boxes in zip(*per_scale, strict=True)] or [[]] * tiles.number
        return torch.tensor(rows, dtype=torch.int32, device="cpu").reshape(tiles.number, len(windows), 6)


def mask_boxes(boxes: Tensor, total: int, sinks: int) -> Tensor:
    """Return a mask, bool [G, total] on the CPU, of the first `sinks` keys and the rectangles of every tile."""
    mask = torch.zeros(boxes.shape[0], total, dtype=torch.bool, device="cpu")
    mask[:, :sinks] = True
    for row, rectangles in zip(mask, boxes.tolist(), strict=True):
        for base, width, y0, y1, x0, x1 in rectangles:
            row[base + y0 * width : base + y1 * width].view(y1 - y0, width)[:, x0:x1] = True
    return mask


def mask_to_lists(mask: Tensor, capacity: int) -> Columns:
    """Return the set positions of bool [..., T] in ascending order, int32 [..., capacity], and their counts."""
    counts = mask.sum(dim=-1, dtype=torch.int32)
    place = (mask.cumsum(dim=-1) - 1).masked_fill(~mask, capacity)  # unset positions go to a slot that is cut off
    keys = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.int32).expand(mask.shape)
    lists = torch.zeros((*mask.shape[:-1], capacity + 1), dtype=torch.int32, device=mask.device)
    lists.scatter_(-1, place, keys)
    return Columns(lists[..., :capacity].contiguous(), counts)
