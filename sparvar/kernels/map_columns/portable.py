"""`map_columns` in torch ops, on any device: a mask of kept keys per tile."""

from __future__ import annotations

import torch

from sparvar.kernels.common.columns import Columns, check_lists, mask_boxes, mask_to_lists
from sparvar.kernels.map_columns.spans import ColumnMap, map_tables


def run(columns: Columns, mapping: ColumnMap, capacity: int) -> Columns:
    """Return lists [B', H', G, capacity]."""
    spans, sources, boxes, sinks, total = map_tables(mapping)
    used = check_lists(columns, len(spans), ascending=False)
    device = used.device
    source = sources.to(device).long()
    used = used[:, :, source]
    keys = columns.indices[:, :, source].long().masked_fill(~used, 0)  # [B', H', G, K_source]
    first, rows, across, step = spans.to(device).long()[keys].unbind(-1)

    mask = torch.zeros((*keys.shape[:3], total + 1), dtype=torch.bool, device=device)  # the last slot takes the unused
    mask[..., :total] = mask_boxes(boxes, total, sinks).to(device)
    for dy in range(int(spans[:, 1].max())):
        for dx in range(int(spans[:, 2].max())):
            inside = used & (dy < rows) & (dx < across)
            mask.scatter_(-1, (first + dy * step + dx).masked_fill(~inside, total), True)
    return mask_to_lists(mask[..., :total], capacity)
