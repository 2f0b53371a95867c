"""`map_columns` in Triton: tables, launches and their order, by which alone one kernel follows another."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sparvar import env
from sparvar.kernels.common.columns import Columns, mask_boxes
from sparvar.kernels.common.launch import launch
from sparvar.kernels.common.torch_compat import assert_on_device
from sparvar.kernels.map_columns.gpu_kernels import compact_kernel, gather_kernel, mark_kernel, spread_kernel
from sparvar.kernels.map_columns.spans import ColumnMap, map_tables

MARK_BLOCK, MARK_WARPS = 512, 4
GATHER_BLOCK, GATHER_WARPS = 512, 4  # pairs of words of four keys
ROW_UNIT = 8 * GATHER_BLOCK
SPREAD_BLOCK, SPREAD_WARPS = 256, 2  # words around a window, slots copied
RANK_UNIT = 16  # words from one known position in a source tile's list to the next
SHARED_FROM = 3  # target tiles per source tile from which a shared compaction saves more than its launch costs

KERNELS = (mark_kernel, gather_kernel, compact_kernel, spread_kernel)


class _Tables(NamedTuple):
    """What depends on the schedule alone, on the device."""

    spans: Tensor  # int32 [T_source, 4]: first key, rows, columns, row step
    sources: Tensor  # int32 [G]
    fixed: Tensor  # uint8 [G, row bytes]: 0 at the sinks and in the tile's window
    sinks: Tensor  # uint8 [row bytes]: 0 at the sinks
    hulls: Tensor  # int32 [G, 2]: first and end of the tile's window, in units of RANK_UNIT words; 0, 0 without one


def _hulls(boxes: Tensor) -> list[tuple[int, int]]:
    """Return (first, end) of the keys of every tile's rectangle, in units of RANK_UNIT words of four keys, end up."""
    unit = 4 * RANK_UNIT
    hulls = []
    for rectangles in boxes.tolist():  # of the target scale alone: one, or none
        keys = [(base + y0 * width + x0, base + (y1 - 1) * width + x1) for base, width, y0, y1, x0, x1 in rectangles]
        first, end = keys[0] if keys else (0, 0)
        hulls.append((first // unit, -(-end // unit)))
    return hulls


@lru_cache(maxsize=64)
def _tables(mapping: ColumnMap, device: torch.device) -> _Tables:
    """Return the tables of one mapping. Only the first call copies to the device."""
    spans, sources, boxes, sinks, total = map_tables(mapping)
    with torch.inference_mode(False):
        row = triton.cdiv(total, ROW_UNIT) * ROW_UNIT
        fixed = torch.ones(boxes.shape[0], row, dtype=torch.uint8, device="cpu")
        fixed[:, :total].masked_fill_(mask_boxes(boxes, total, sinks), 0)
        only_sinks = torch.ones(row, dtype=torch.uint8, device="cpu")
        only_sinks[:sinks] = 0
        hulls = torch.tensor(_hulls(boxes), dtype=torch.int32, device="cpu")
        return _Tables(*(table.to(device) for table in (spans, sources, fixed, only_sinks, hulls)))


def run(columns: Columns, mapping: ColumnMap, capacity: int) -> Columns:
    """Return lists [B', H', G, capacity].

    Bad counts or indices write nothing outside these and fail a device-side assertion; the host does not wait.
    """
    indices, counts = columns.packed()
    batch, heads, from_tiles, kept = indices.shape
    tables = _tables(mapping, indices.device)
    tiles, row_bytes = tables.fixed.shape
    out = indices.new_empty((batch, heads, tiles, capacity))
    out_counts = indices.new_empty((batch, heads, tiles))
    rows = batch * heads * from_tiles
    if not rows:
        return Columns(out, out_counts)
    # One fill for both: the rows, and behind them one byte that stays 1 while all values are good.
    scratch = torch.ones(rows * row_bytes + 1, dtype=torch.uint8, device=indices.device)
    valid = scratch[-1:]
    launch(
        mark_kernel,
        (rows, triton.cdiv(kept, MARK_BLOCK)),
        indices,
        counts,
        tables.spans,
        scratch,
        valid,
        *indices.stride()[:3],
        *counts.stride(),
        heads,
        from_tiles,
        kept,
        tables.spans.shape[0],
        row_bytes,
        BLOCK=MARK_BLOCK,
        num_warps=MARK_WARPS,
    )
    absent, fixed = scratch[:-1].view(torch.int32), tables.fixed.view(torch.int32)
    if tiles >= SHARED_FROM * from_tiles:
        _spread(absent, fixed, tables, out, out_counts, rows, from_tiles)
    else:
        launch(
            gather_kernel,
            (batch * heads * tiles,),
            absent,
            fixed,
            tables.sources,
            out,
            out_counts,
            tiles,
            from_tiles,
            row_bytes // 4,
            capacity,
            BLOCK=GATHER_BLOCK,
            num_warps=GATHER_WARPS,
        )
    must = f"counts: must be from 1 to {kept}; indices: must name keys that exist, 0 to {len(tables.spans) - 1}"
    if env.gpu_checks():
        assert_on_device(valid.view(torch.bool), must)
    return Columns(out, out_counts)


def _spread(
    absent: Tensor, fixed: Tensor, tables: _Tables, out: Tensor, out_counts: Tensor, rows: int, from_tiles: int
) -> None:
    """Fill `out` and `out_counts` by one compaction for each of the `rows` source tiles of all heads."""
    tiles, capacity = out.shape[2:]
    words = fixed.shape[1]
    lists = out.new_empty((rows, capacity))
    ranks = out.new_empty((rows, words // RANK_UNIT + 1))
    launch(
        compact_kernel,
        (rows,),
        absent,
        tables.sinks.view(torch.int32),
        lists,
        ranks,
        words,
        capacity,
        BLOCK=GATHER_BLOCK,
        UNIT=RANK_UNIT,
        num_warps=GATHER_WARPS,
    )
    launch(
        spread_kernel,
        (out_counts.numel(),),
        absent,
        fixed,
        tables.hulls,
        tables.sources,
        lists,
        ranks,
        out,
        out_counts,
        tiles,
        from_tiles,
        words,
        capacity,
        BLOCK=SPREAD_BLOCK,
        UNIT=RANK_UNIT,
        num_warps=SPREAD_WARPS,
    )


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], int, int, str]]:
    """Return (kernel, signature, constexprs, num_warps, num_stages, name) of what `run` compiles, for any GPU."""
    bytes_of = {mark_kernel: ("absent", "valid")}
    integers_of = {
        mark_kernel: ("indices", "counts", "spans"),
        gather_kernel: ("absent", "fixed", "sources", "out", "out_counts"),
        compact_kernel: ("absent", "sinks", "lists", "ranks"),
        spread_kernel: ("absent", "fixed", "hulls", "sources", "lists", "ranks", "out", "out_counts"),
    }
    cases = []
    for kernel, constants, warps, name in (
        (mark_kernel, {"BLOCK": MARK_BLOCK}, MARK_WARPS, "mark"),
        (gather_kernel, {"BLOCK": GATHER_BLOCK}, GATHER_WARPS, "gather"),
        (compact_kernel, {"BLOCK": GATHER_BLOCK, "UNIT": RANK_UNIT}, GATHER_WARPS, "compact"),
        (spread_kernel, {"BLOCK": SPREAD_BLOCK, "UNIT": RANK_UNIT}, SPREAD_WARPS, "spread"),
    ):
        signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
        signature |= dict.fromkeys(integers_of[kernel], "*i32") | dict.fromkeys(bytes_of.get(kernel, ()), "*u8")
        cases.append((kernel, signature, constants, warps, 3, f"map_columns {name}"))
    return cases
