"""Schema, fake, checks and dispatch of `local_columns`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_positive, check_schedule, fail
from sparvar.kernels.common.columns import box_sizes
from sparvar.kernels.common.geometry import scale_offsets, tile_count
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.local_columns import cpu, portable

__all__ = ["local_capacity", "local_columns"]


def _active(windows: Sequence[int], sink_scales: int) -> tuple[tuple[int, int], ...]:
    """Return (scale, odd side) of the windows outside the sinks."""
    return tuple((scale, side) for scale, side in enumerate(windows, start=1) if side and scale > sink_scales)


def _check(
    heights: Sequence[int],
    widths: Sequence[int],
    prefix: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    windows: Sequence[int],
    sink_scales: int,
) -> None:
    check_schedule(heights, widths, prefix, sink_scales, target_scale)
    check_positive(tile_h=tile_h, tile_w=tile_w)
    if len(windows) != target_scale:
        raise fail("windows", f"name a side for each of the {target_scale} scales", f"{len(windows)} sides")
    for side in windows:
        if side < 0 or (side and side % 2 == 0):
            raise fail("windows", "be odd sides, or 0 for none", list(windows))
    if prefix == 0 and sink_scales == 0 and not any(windows):
        raise fail("windows", "leave every query at least one key", "no window, no sink scale and no prefix")


def local_capacity(
    heights: Sequence[int],
    widths: Sequence[int],
    prefix: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    windows: Sequence[int],
    sink_scales: int,
) -> int:
    """Return K of `local_columns`: the number of columns of the tile that has most."""
    _check(heights, widths, prefix, target_scale, tile_h, tile_w, windows, sink_scales)
    schedule = (tuple(heights[:target_scale]), tuple(widths[:target_scale]), prefix)
    sizes = box_sizes(schedule, target_scale, (tile_h, tile_w), _active(windows, sink_scales))
    return scale_offsets(*schedule)[sink_scales] + max(sizes)


def _run(
    heights: list[int],
    widths: list[int],
    prefix: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    windows: list[int],
    sink_scales: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    capacity = local_capacity(heights, widths, prefix, target_scale, tile_h, tile_w, windows, sink_scales)
    schedule = (tuple(heights[:target_scale]), tuple(widths[:target_scale]), prefix)
    active = _active(windows, sink_scales)
    sinks = scale_offsets(*schedule)[sink_scales]
    if device.type == "cpu" and use_native():
        return cpu.run(schedule, target_scale, (tile_h, tile_w), active, sinks, capacity)
    return portable.run(schedule, target_scale, (tile_h, tile_w), active, sinks, capacity, device)


def _fake(
    heights: list[int],
    widths: list[int],
    prefix: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    windows: list[int],
    sink_scales: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    capacity = local_capacity(heights, widths, prefix, target_scale, tile_h, tile_w, windows, sink_scales)
    tiles = tile_count(heights[target_scale - 1], widths[target_scale - 1], tile_h, tile_w)
    indices = torch.empty((1, 1, tiles, capacity), dtype=torch.int32, device=device)
    return indices, torch.empty((1, 1, tiles), dtype=torch.int32, device=device)


_op = define(
    "local_columns(int[] heights, int[] widths, int prefix, int target_scale, int tile_h, int tile_w, int[] windows, "
    "int sink_scales, Device device) -> (Tensor, Tensor)",
    _run,
    _fake,
)


def local_columns(
    heights: Sequence[int],
    widths: Sequence[int],
    prefix: int,
    target_scale: int,
    tile_h: int,
    tile_w: int,
    windows: Sequence[int],
    sink_scales: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return the columns of cross-scale local attention (SparVAR, supplement B), the same for every row and head.

    heights, widths: the schedule, scales 1 to target_scale or longer; windows[l - 1]: odd side of the window at
    scale l, 0 for none, one for each scale up to the target -> indices int32 [1, 1, G, K], counts int32 [1, 1, G],
    K as `local_capacity` says. The window of query (y, x) at scale l is centred on floor(y * h_l / h + 1/2), likewise
    in x, both clipped to the grid; a tile takes the rectangle that its queries' windows span. The prefix and all
    tokens of the first `sink_scales` scales are in every list, once.

    Raises `KernelError` on a schedule, scale, window or tile that makes no sense.
    """
    result: tuple[Tensor, Tensor] = _op(
        list(heights),
        list(widths),
        prefix,
        target_scale,
        tile_h,
        tile_w,
        list(windows),
        sink_scales,
        torch.device(device),
    )
    return result
