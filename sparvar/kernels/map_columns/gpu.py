"""`map_columns` in Triton: a byte for every key and source tile, then one compaction per target tile.

A byte is 1 where a key is absent. Two kernels, and the order of launches between them: the first stores 0 at the
targets of every kept source key (any order, the same value, so the result is deterministic), the second unites that
row with the tile's fixed keys and writes the list. Target tiles with the same source tile share its row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar import env
from sparvar.kernels.common.columns import Schedule, mask_boxes, window_boxes
from sparvar.kernels.common.geometry import scale_offsets
from sparvar.kernels.common.launch import launch
from sparvar.kernels.map_columns.spans import key_spans, source_tiles, windows_of

__all__ = ["KERNELS", "aot_cases", "run"]

MARK_BLOCK, MARK_WARPS = 512, 4
GATHER_BLOCK, GATHER_WARPS = 512, 4  # pairs of words of four keys
ROW_UNIT = 8 * GATHER_BLOCK


@triton.jit
def mark_kernel(
    indices: tl.tensor,
    counts: tl.tensor,
    spans: tl.tensor,
    absent: tl.tensor,
    valid: tl.tensor,
    index_batch: tl.tensor,
    index_head: tl.tensor,
    index_tile: tl.tensor,
    count_batch: tl.tensor,
    count_head: tl.tensor,
    count_tile: tl.tensor,
    heads: tl.tensor,
    tiles: tl.tensor,
    capacity: tl.tensor,
    source_total: tl.tensor,
    row_bytes: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Store 0 in `absent` [rows, row_bytes] at the span of each kept key, or in `valid` where a value is bad."""
    row = tl.program_id(0)
    tile = row % tiles
    head = row // tiles % heads
    batch = (row // tiles // heads).to(tl.int64)
    count = tl.load(counts + batch * count_batch + head * count_head + tile * count_tile)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = slot < tl.minimum(count, capacity)
    place = batch * index_batch + head.to(tl.int64) * index_head + tile.to(tl.int64) * index_tile
    key = tl.load(indices + place + slot, mask=used, other=0)
    exists = used & (key >= 0) & (key < source_total)
    wrong = tl.max((used ^ exists).to(tl.int32), axis=0)
    tl.store(valid, 0, mask=(count < 1) | (count > capacity) | (wrong != 0))

    span = spans + tl.where(exists, key, 0) * 4
    first = tl.load(span, mask=exists, other=0)
    rows = tl.load(span + 1, mask=exists, other=0)
    columns = tl.load(span + 2, mask=exists, other=0)
    step = tl.load(span + 3, mask=exists, other=0)
    target = absent + row.to(tl.int64) * row_bytes + first
    for dy in range(tl.max(rows, axis=0)):
        for dx in range(tl.max(columns, axis=0)):
            tl.store(target + dy * step + dx, 0, mask=(dy < rows) & (dx < columns))


@triton.jit
def _kept(absent: tl.tensor, fixed: tl.tensor, word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return words with a byte of 1 for every kept key, and with the number of the first i + 1 of them in byte i."""
    kept = (tl.load(absent + word) & tl.load(fixed + word)) ^ 0x01010101
    return kept, kept * 0x01010101


@triton.jit
def _write(
    target: tl.tensor, capacity: tl.tensor, key: tl.tensor, kept: tl.tensor, upto: tl.tensor, end: tl.tensor
) -> None:
    """Store the kept keys of words whose first key is `key` and whose last kept one goes before slot `end`."""
    # No list is longer by the geometry of capacities; if one were, the next tile's list must stay whole.
    kept = tl.where(end <= capacity, kept, 0)
    before = end - (upto >> 24) - 1
    for i in tl.static_range(4):
        tl.store(target + before + ((upto >> (8 * i)) & 0xFF), key + i, mask=(kept & (1 << (8 * i))) != 0)


@triton.jit(do_not_specialize=["row_words"])
def gather_kernel(
    absent: tl.tensor,
    fixed: tl.tensor,
    sources: tl.tensor,
    out: tl.tensor,
    out_counts: tl.tensor,
    tiles: tl.tensor,
    source_tiles: tl.tensor,
    row_words: tl.tensor,
    capacity: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the keys that are 0 in the source tile's row or in the tile's own row, ascending, zeros behind them.

    Four keys are one word of a row, and a scan counts two words at once: with one load and one scan for each key the
    kernel was three times as long. Rows are padded with ones to a multiple of 2 BLOCK words. That their length is a
    multiple of 16 is kept from the compiler: it would load four words a thread and then pass every pointer through
    shared memory, as neighbours must store to neighbouring places.
    """
    row = tl.program_id(0)
    tile = row % tiles
    source = (row // tiles).to(tl.int64) * source_tiles + tl.load(sources + tile)
    mapped = absent + source * row_words
    own = fixed + tile.to(tl.int64) * row_words
    target = out + row.to(tl.int64) * capacity
    lane = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)
    for start in range(0, row_words, 2 * BLOCK):
        word = start + lane
        left, left_upto = _kept(mapped, own, word)
        right, right_upto = _kept(mapped, own, word + BLOCK)
        pair = (left_upto >> 24) | (right_upto >> 24 << 16)
        end = tl.cumsum(pair, axis=0)
        total = tl.sum(pair, axis=0)
        half = count + (total & 0xFFFF)
        _write(target, capacity, 4 * word, left, left_upto, count + (end & 0xFFFF))
        _write(target, capacity, 4 * (word + BLOCK), right, right_upto, half + (end >> 16))
        count = half + (total >> 16)
    for start in range(count, capacity, BLOCK):
        tl.store(target + start + lane, 0, mask=start + lane < capacity)
    tl.store(out_counts + row, count)


KERNELS = (mark_kernel, gather_kernel)


class _Tables(NamedTuple):
    """What depends on the schedule alone, on the device."""

    spans: Tensor  # int32 [T_source, 4]: first key, rows, columns, row step
    sources: Tensor  # int32 [G]
    fixed: Tensor  # uint8 [G, row bytes]: 0 at the sinks and in the tile's window


@lru_cache(maxsize=64)
def _tables(
    schedule: Schedule,
    source_scale: int,
    target_scale: int,
    tile: tuple[int, int],
    index_map: str,
    sink_scales: int,
    window: int,
    device: torch.device,
) -> _Tables:
    """Return the tables of one mapping. Only the first call copies to the device."""
    heights, widths, _ = schedule
    offsets = scale_offsets(*schedule)
    total = offsets[target_scale]
    grids = tuple((heights[scale - 1], widths[scale - 1]) for scale in (source_scale, target_scale))
    boxes = window_boxes(schedule, target_scale, tile, windows_of(target_scale, window, sink_scales))
    with torch.inference_mode(False):
        row = triton.cdiv(total, ROW_UNIT) * ROW_UNIT
        fixed = torch.ones(boxes.shape[0], row, dtype=torch.uint8, device="cpu")
        fixed[:, :total].masked_fill_(mask_boxes(boxes, total, offsets[sink_scales]), 0)
        return _Tables(
            key_spans(schedule, source_scale, target_scale, index_map, sink_scales).to(device),
            source_tiles(grids[0], grids[1], tile).to(device),
            fixed.to(device),
        )


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
    """Return indices int32 [B', H', G, capacity] and counts int32 [B', H', G].

    Bad counts or indices write nothing outside these and fail a device-side assertion; the host does not wait.
    """
    if indices.stride(3) != 1:
        indices = indices.contiguous()
    batch, heads, from_tiles, kept = indices.shape
    tables = _tables(schedule, source_scale, target_scale, tile, index_map, sink_scales, window, indices.device)
    tiles, row_bytes = tables.fixed.shape
    out = indices.new_empty((batch, heads, tiles, capacity))
    out_counts = indices.new_empty((batch, heads, tiles))
    rows = batch * heads * from_tiles
    if not rows:
        return out, out_counts
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
    launch(
        gather_kernel,
        (batch * heads * tiles,),
        scratch[:-1].view(torch.int32),
        tables.fixed.view(torch.int32),
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
        torch._assert_async(valid.view(torch.bool), must)
    return out, out_counts


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], int, int, str]]:
    """Return (kernel, signature, constexprs, num_warps, num_stages, name) of what `run` compiles, for any GPU."""
    mark = {"indices": "*i32", "counts": "*i32", "spans": "*i32", "absent": "*u8", "valid": "*u8"}
    gather = {"absent": "*i32", "fixed": "*i32", "sources": "*i32", "out": "*i32", "out_counts": "*i32"}
    cases = []
    for kernel, pointers, block, warps, name in (
        (mark_kernel, mark, MARK_BLOCK, MARK_WARPS, "map_columns mark"),
        (gather_kernel, gather, GATHER_BLOCK, GATHER_WARPS, "map_columns gather"),
    ):
        integers = [argument for argument in kernel.arg_names if argument not in pointers and argument != "BLOCK"]
        signature = pointers | dict.fromkeys(integers, "i32") | {"BLOCK": "constexpr"}
        cases.append((kernel, signature, {"BLOCK": block}, warps, 3, name))
    return cases
