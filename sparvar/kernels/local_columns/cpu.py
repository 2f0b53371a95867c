"""`local_columns` on the native kernel: sinks and rectangles of every tile united in a bitmap."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import call
from sparvar.kernels.common.columns import Schedule, window_boxes
from sparvar.kernels.common.geometry import scale_offsets

__all__ = ["run"]

NO_SOURCE = (0,) * 12


def run(
    schedule: Schedule,
    target: int,
    tile: tuple[int, int],
    windows: tuple[tuple[int, int], ...],
    sinks: int,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """Return indices int32 [1, 1, G, capacity] and counts int32 [1, 1, G]."""
    boxes = window_boxes(schedule, target, tile, windows)
    tiles = boxes.shape[0]
    indices = torch.empty((1, 1, tiles, capacity), dtype=torch.int32, device="cpu")
    counts = torch.empty((1, 1, tiles), dtype=torch.int32, device="cpu")
    call(
        "sparvar_union",
        (
            1,
            1,
            tiles,
            scale_offsets(*schedule)[target],
            sinks,
            boxes.data_ptr(),
            len(windows),
            *NO_SOURCE,
            indices.data_ptr(),
            counts.data_ptr(),
            capacity,
            torch.get_num_threads(),
        ),
        reports=True,
    )
    return indices, counts
