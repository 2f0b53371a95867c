"""`map_columns` in torch ops, on any device: a mask of kept keys per tile."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.columns import Schedule, mask_boxes, mask_to_lists, window_boxes
from sparvar.kernels.common.geometry import scale_offsets
from sparvar.kernels.common.torch_compat import assert_on_device
from sparvar.kernels.map_columns.spans import key_spans, source_tiles, windows_of

__all__ = ["run"]


def _check_lists(used: Tensor, indices: Tensor, counts: Tensor, keys: int) -> None:
    for good, subject, must in (
        ((counts >= 1) & (counts <= indices.shape[3]), "counts", "be from 1 to the capacity of indices"),
        ((indices >= 0) & (indices < keys) | ~used, "indices", f"name keys that exist, 0 to {keys - 1}"),
    ):
        if indices.device.type == "cpu":
            if not bool(good.all()):
                raise fail(subject, must, f"something else at {(~good).nonzero()[0].tolist()}")
        else:  # without waiting for the device
            assert_on_device(good.all(), f"{subject}: must {must}")


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
    device = indices.device
    offsets = scale_offsets(*schedule)
    total = offsets[target_scale]
    spans = key_spans(schedule, source_scale, target_scale, index_map, sink_scales)
    used = torch.arange(indices.shape[3], device=device) < counts[..., None]
    _check_lists(used, indices, counts, len(spans))

    grids = tuple((heights[scale - 1], widths[scale - 1]) for scale in (source_scale, target_scale))
    source = source_tiles(grids[0], grids[1], tile).to(device).long()
    used = used[:, :, source]
    keys = indices[:, :, source].long().masked_fill(~used, 0)  # [B', H', G, K_source]
    first, rows, columns, step = spans.to(device).long()[keys].unbind(-1)

    boxes = window_boxes(schedule, target_scale, tile, windows_of(target_scale, window, sink_scales))
    fixed = mask_boxes(boxes, total, offsets[sink_scales]).to(device)
    mask = torch.zeros((*keys.shape[:3], total + 1), dtype=torch.bool, device=device)  # the last slot takes the unused
    mask[..., :total] = fixed
    for dy in range(int(spans[:, 1].max())):
        for dx in range(int(spans[:, 2].max())):
            inside = used & (dy < rows) & (dx < columns)
            mask.scatter_(-1, (first + dy * step + dx).masked_fill(~inside, total), True)
    return mask_to_lists(mask[..., :total], capacity)
