"""`map_columns` on the native kernel: spans, sinks and window of every tile united in a bitmap."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import call, shared
from sparvar.kernels.common.columns import Schedule, window_boxes
from sparvar.kernels.common.geometry import scale_offsets
from sparvar.kernels.map_columns.spans import key_spans, source_tiles, windows_of

__all__ = ["run"]


def run(
    indices: Tensor,
    counts: Tensor,
    schedule: Schedule,
    source_scale: int,
    target_scale: int,
    tile: tuple[int, int],
    index_map: str,
    sink_scales: int,
    window: int,
    capacity: int,
) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B', H', G, capacity] and counts int32 [B', H', G]."""
    heights, widths, _ = schedule
    if indices.stride(3) != 1:
        indices = indices.contiguous()
    offsets = scale_offsets(*schedule)
    spans = key_spans(schedule, source_scale, target_scale, index_map, sink_scales)
    grids = tuple((heights[scale - 1], widths[scale - 1]) for scale in (source_scale, target_scale))
    sources = source_tiles(grids[0], grids[1], tile)
    boxes = window_boxes(schedule, target_scale, tile, windows_of(target_scale, window, sink_scales))
    lead = (*indices.shape[:2], len(sources))
    out, out_counts = indices.new_empty((*lead, capacity)), indices.new_empty(lead)
    call(
        "sparvar_union",
        (
            *lead,
            offsets[target_scale],
            offsets[sink_scales],
            boxes.data_ptr(),
            boxes.shape[1],
            sources.data_ptr(),
            *shared(indices),
            *shared(counts),
            indices.shape[3],
            spans.data_ptr(),
            len(spans),
            out.data_ptr(),
            out_counts.data_ptr(),
            capacity,
            torch.get_num_threads(),
        ),
        reports=True,
    )
    return out, out_counts
