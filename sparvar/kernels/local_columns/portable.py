"""`local_columns` in torch ops: the lists are made on the CPU and copied to the device, once per scale and model."""

from __future__ import annotations

import torch

from sparvar.kernels.common.columns import Columns, mask_boxes, mask_to_lists
from sparvar.kernels.local_columns.windows import LocalWindows


def run(windows: LocalWindows, capacity: int, device: torch.device) -> Columns:
    """Return lists [1, 1, G, capacity]."""
    sinks, total = windows.sinks_and_total()
    indices, counts = mask_to_lists(mask_boxes(windows.boxes(), total, sinks), capacity)
    # The second copy waits for the stream, and so for the first: both are complete, whatever stream reads them later.
    return Columns(indices[None, None].to(device, non_blocking=True), counts[None, None].to(device))
