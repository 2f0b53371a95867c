"""Declaration of `local_columns`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import Schedule
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.local_columns import cpu, portable
from sparvar.kernels.local_columns.windows import LocalWindows, local_capacity


def _prepare(heights: Sequence[int], widths: Sequence[int], prefix: int, *rest: Any) -> tuple[Any, ...]:
    target, tile_h, tile_w, windows, sinks, device = rest
    schedule = Schedule(tuple(heights), tuple(widths), prefix)
    found = LocalWindows(schedule, target, (tile_h, tile_w), tuple(windows), sinks)
    return found, local_capacity(found), device


def _run(windows: LocalWindows, capacity: int, device: torch.device) -> tuple[Tensor, Tensor]:
    if device.type == "cpu" and use_native():
        return cpu.run(windows, capacity)
    return portable.run(windows, capacity, device)


def _empty(windows: LocalWindows, capacity: int, device: torch.device) -> tuple[Tensor, Tensor]:
    lead = (1, 1, windows.tiles.number)
    indices = torch.empty((*lead, capacity), dtype=torch.int32, device=device)
    return indices, torch.empty(lead, dtype=torch.int32, device=device)


_op: Callable[..., tuple[Tensor, Tensor]] = define(
    "local_columns(int[] heights, int[] widths, int prefix, int target_scale, int tile_h, int tile_w, int[] windows, "
    "int sink_scales, Device device) -> (Tensor, Tensor)",
    _prepare,
    _run,
    _empty,
)


def local_columns(windows: LocalWindows, device: torch.device | str = "cpu") -> Columns:
    """Return the columns of cross-scale local attention (SparVAR, supplement B), the same for every row and head.

    -> indices int32 [1, 1, G, K], counts int32 [1, 1, G], K as `local_capacity` says. The window of query (y, x) at
    scale l is centred on floor(y * h_l / h + 1/2), likewise in x, both clipped to the grid; a tile takes the rectangle
    that its queries' windows span. The prefix and all tokens of the first `sink_scales` scales are in every list, once.

    Raises `KernelError` on a schedule, scale, window or tile that makes no sense.
    """
    (heights, widths, prefix), target, tile, sides, sinks = windows
    given = (list(heights), list(widths), prefix, target, *tile, list(sides), sinks)
    return Columns(*_op(*given, torch.device(device)))
