"""Declaration of `map_columns`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_columns
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import Schedule
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.map_columns import cpu, portable
from sparvar.kernels.map_columns.spans import ColumnMap, map_capacity


def _prepare(
    indices: Tensor, counts: Tensor, heights: Sequence[int], widths: Sequence[int], prefix: int, *rest: Any
) -> tuple[Any, ...]:
    source, target, tile_h, tile_w, index_map, sinks, window = rest
    schedule = Schedule(tuple(heights), tuple(widths), prefix)
    mapping = ColumnMap(schedule, source, target, (tile_h, tile_w), index_map, sinks, window)
    columns = Columns(indices, counts)
    batch, heads, kept = (indices.shape[0], indices.shape[1], indices.shape[3]) if indices.dim() == 4 else (1, 1, 1)
    capacity = map_capacity(kept, mapping)
    check_columns(*columns, batch, heads, mapping.sources.number, indices.device)
    return columns, mapping, capacity


def _run(columns: Columns, mapping: ColumnMap, capacity: int) -> tuple[Tensor, Tensor]:
    device = columns.indices.device
    if device.type == "cpu" and use_native():
        return cpu.run(columns, mapping, capacity)
    kernels: Any = triton_kernels("map_columns", device, torch.int32)
    found: tuple[Tensor, Tensor] = (portable if kernels is None else kernels).run(columns, mapping, capacity)
    return found


def _empty(columns: Columns, mapping: ColumnMap, capacity: int) -> tuple[Tensor, Tensor]:
    lead = (*columns.indices.shape[:2], mapping.targets.number)
    return columns.indices.new_empty((*lead, capacity)), columns.indices.new_empty(lead)


# Opaque to tracers, also on GPUs: its tables are tensors kept per schedule, which no traced graph can hold.
_op: Callable[..., tuple[Tensor, Tensor]] = define(
    "map_columns(Tensor indices, Tensor counts, int[] heights, int[] widths, int prefix, int source_scale, "
    "int target_scale, int tile_h, int tile_w, str index_map, int sink_scales, int window) -> (Tensor, Tensor)",
    _prepare,
    _run,
    _empty,
)


def map_columns(columns: Columns, mapping: ColumnMap) -> Columns:
    """Return the columns of the decision scale carried to a later scale (SparVAR, supplement A, steps 2 to 4).

    indices int32 [B', H', G_source, K_source] and counts int32 [B', H', G_source]
    -> indices int32 [B', H', G, K] and counts int32 [B', H', G], rows ascending and unique, K as `map_capacity` says.

    A target tile takes the list of the source tile at its place. With S = source and k = target, key (u, v) of scale
    l becomes, after `index_map`: `identity`: the same key; `relative`: (floor(u h'/h), floor(v w'/w)) of scale
    l' = k - (S - l); `footprint`: the whole area of that cell at l', from there to the next cell's corner. Prefix and
    the tokens of the first `sink_scales` scales stay themselves and are in every list. `window` adds, at the target
    scale, the odd square around each query of the tile (0: none).

    Raises `KernelError` on wrong shapes, scales or geometry; on the CPU also on indices or counts out of range,
    which on GPUs fail an assertion on the device.
    """
    (heights, widths, prefix), source, target, tile, *rest = mapping
    return Columns(*_op(*columns, list(heights), list(widths), prefix, source, target, *tile, *rest))
