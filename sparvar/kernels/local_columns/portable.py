"""`local_columns` in torch ops: the lists are made on the CPU and copied to the device, once per scale and model."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.columns import Schedule, mask_boxes, mask_to_lists, window_boxes
from sparvar.kernels.common.geometry import scale_offsets

__all__ = ["run"]


def run(
    schedule: Schedule,
    target: int,
    tile: tuple[int, int],
    windows: tuple[tuple[int, int], ...],
    sinks: int,
    capacity: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return indices int32 [1, 1, G, capacity] and counts int32 [1, 1, G]."""
    boxes = window_boxes(schedule, target, tile, windows)
    indices, counts = mask_to_lists(mask_boxes(boxes, scale_offsets(*schedule)[target], sinks), capacity)
    # The second copy waits for the stream, and so for the first: both are complete, whatever stream reads them later.
    return indices[None, None].to(device, non_blocking=True), counts[None, None].to(device)
