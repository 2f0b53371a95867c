"""`local_columns` on the native kernel: sinks and rectangles of every tile united in a bitmap."""

from __future__ import annotations

from sparvar.kernels.common.binding import union
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.local_columns.windows import LocalWindows


def run(windows: LocalWindows, capacity: int) -> Columns:
    """Return lists [1, 1, G, capacity]."""
    sinks, total = windows.sinks_and_total()
    return union(windows.boxes(), total, sinks, capacity)
