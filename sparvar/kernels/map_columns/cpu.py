"""`map_columns` on the native kernel: spans, sinks and window of every tile united in a bitmap."""

from __future__ import annotations

from sparvar.kernels.common.binding import union
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.map_columns.spans import ColumnMap, map_tables


def run(columns: Columns, mapping: ColumnMap, capacity: int) -> Columns:
    """Return lists [B', H', G, capacity]."""
    spans, sources, boxes, sinks, total = map_tables(mapping)
    return union(boxes, total, sinks, capacity, (columns, sources, spans))
