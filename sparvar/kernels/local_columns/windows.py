"""The windows of cross-scale local attention, as one value, and how many columns they make."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from sparvar.kernels.common.checks import check_positive, check_schedule, fail
from sparvar.kernels.common.columns import Windows, box_sizes, window_boxes
from sparvar.kernels.common.geometry import QueryTiles, Schedule


class LocalWindows(NamedTuple):
    """What query tiles of the target scale see of every scale.

    Attributes:
        schedule: scales 1 to `target_scale` or longer.
        target_scale: the scale of the queries.
        tile: rows and columns of a query tile.
        windows: the odd side of the window at every scale up to the target, 0 for none.
        sink_scales: how many first scales are seen whole.
    """

    schedule: Schedule
    target_scale: int
    tile: tuple[int, int]
    windows: tuple[int, ...]
    sink_scales: int

    @property
    def tiles(self) -> QueryTiles:
        """The query tiles of the target scale."""
        return self.schedule.tiles(self.target_scale, self.tile)

    @property
    def active(self) -> Windows:
        """The windows outside the sinks."""
        sides = enumerate(self.windows, start=1)
        return tuple((scale, side) for scale, side in sides if side and scale > self.sink_scales)

    def boxes(self) -> Tensor:
        """Return the rectangles of every tile, see `window_boxes`."""
        return window_boxes(self.schedule, self.tiles, self.active)

    def sinks_and_total(self) -> tuple[int, int]:
        """Return the number of keys that every tile sees, and of all keys."""
        offsets = self.schedule.offsets()
        return offsets[self.sink_scales], offsets[self.target_scale]


@lru_cache(maxsize=256)
def local_capacity(windows: LocalWindows) -> int:
    """Return K of `local_columns`: the number of columns of the tile that has most.

    Raises `KernelError` on a schedule, scale, window or tile that makes no sense.
    """
    schedule, target, (tile_h, tile_w), sides, sink_scales = windows
    check_schedule(schedule, sink_scales, target)
    check_positive(tile_h=tile_h, tile_w=tile_w)
    if len(sides) != target:
        raise fail("windows", f"name a side for each of the {target} scales", f"{len(sides)} sides")
    for side in sides:
        if side < 0 or (side and side % 2 == 0):
            raise fail("windows", "be odd sides, or 0 for none", list(sides))
    if schedule.prefix == 0 and sink_scales == 0 and not any(sides):
        raise fail("windows", "leave every query at least one key", "no window, no sink scale and no prefix")
    return windows.sinks_and_total()[0] + max(box_sizes(schedule, windows.tiles, windows.active))
