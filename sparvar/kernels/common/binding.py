"""Calls of the native kernels: argument blocks of 8-byte fields in the order of the C++ structs."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sparvar.kernels.common.checks import attention_output, fail
from sparvar.kernels.common.columns import Columns, KeptTokens
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.common.native import native_symbol

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_OPERAND: tuple[int, ...] = (0,) * 4
NO_LISTS: tuple[int, ...] = (0,) * 9
_blocks: dict[str, struct.Struct] = {}


def rows_contiguous(x: Tensor) -> Tensor:
    """Return x with unit stride in the last dimension, copied only if it has another one."""
    return x if x.stride(3) == 1 else x.contiguous()


def operand(x: Tensor) -> tuple[int, ...]:
    """Return pointer and strides (batch row, head, token) of [B, H, L, D]."""
    return x.data_ptr(), *x.stride()[:3]


def list_strides(x: Tensor) -> tuple[int, int, int]:
    """Return strides (batch row, head, tile) of a list tensor [B', H', G, ...]; an axis of size 1 is broadcast by 0."""
    batch, head, tile = x.stride()[:3]
    return batch if x.shape[0] > 1 else 0, head if x.shape[1] > 1 else 0, tile


def _lists(columns: Columns) -> tuple[int, ...]:
    """Return pointer and strides of packed indices and of counts, and the capacity K."""
    indices, counts = columns
    return indices.data_ptr(), *list_strides(indices), counts.data_ptr(), *list_strides(counts), indices.shape[3]


def call(name: str, integers: tuple[int, ...], scale: float | None = None, *, reports: bool = False) -> None:
    """Run the C function `name` on packed integers and, behind them, `scale` where it takes one.

    `reports`: a pointer for failure details is appended. What a function takes never changes.
    """
    report = (ctypes.c_int64 * 5)() if reports else None
    layout = _blocks.get(name)
    if layout is None:
        layout = struct.Struct(f"@{len(integers)}q{'' if scale is None else 'd'}{'q' if reports else ''}")
        layout = _blocks.setdefault(name, layout)
    numbers = () if scale is None else (scale,)
    if report is None:
        native_symbol(name)(layout.pack(*integers, *numbers))
    elif native_symbol(name)(layout.pack(*integers, *numbers, ctypes.addressof(report))):
        batch, head, tile, what, value = report
        place = f"batch row {batch}, head {head}, tile {tile}"
        if what == 1:
            raise fail("counts", "be from 1 to the capacity of indices", f"{value} at {place}")
        if what == 2:
            raise fail("indices", "name keys that exist", f"{value} at {place}")
        if what == 3:
            raise fail("indices", "be ascending without duplicates", f"{value} after an entry not below it at {place}")
        if what == 5:
            raise fail("starts", "ascend from 0 to the number of queries", f"{value} behind tile {tile}")
        if what == 6:
            raise fail("alive", "leave every list a key", f"none at {place}")
        raise fail("capacity", "hold every kept column", f"{value} columns at {place}")


def attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    scale: float,
    tiles: QueryTiles,
    columns: Columns | None = None,
    correction: Tensor | None = None,
    tokens: KeptTokens | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return attention [B, H, N, D] of q [B, H, N, D] to the `columns` of each tile in k and v [B, H, T, D], or to all.

    `correction` [B, H, N, D] is added. With `tokens`, contiguous, tile g holds the rows of q that `starts` says,
    whatever the grid, and keys that are not alive are left out of every list. `stats`, log-sum-exp and entropy, fp32
    [B, H, N] contiguous, are filled.
    """
    q, k, v = map(rows_contiguous, qkv)
    out = attention_output(q)
    batch, heads, queries, dim = q.shape
    code = extra_code = DTYPE_CODES[q.dtype]
    lists, extra = NO_LISTS, NO_OPERAND
    if columns is not None:
        columns = columns.packed()
        lists = _lists(columns)
    if correction is not None:
        correction = rows_contiguous(correction)
        extra, extra_code = operand(correction), DTYPE_CODES[correction.dtype]
    starts, alive = (None, None) if tokens is None else tokens
    call(
        "sparvar_attention",
        (
            *operand(q),
            *operand(k),
            *operand(v),
            *operand(out),
            *extra,
            *(batch, heads, k.shape[2], dim, code, extra_code),
            *tiles.grid,
            *tiles.tile,
            1,
            *lists,
            *((0, 0) if stats is None else (stats[0].data_ptr(), stats[1].data_ptr())),
            0 if starts is None else starts.data_ptr(),
            queries,
            0 if alive is None else alive.data_ptr(),
            torch.get_num_threads(),
        ),
        scale,
        reports=True,
    )
    return out


def union(
    boxes: Tensor, total: int, sinks: int, capacity: int, mapped: tuple[Columns, Tensor, Tensor] | None = None
) -> Columns:
    """Return lists of `capacity` of the first `sinks` of `total` keys, the keys in `boxes` (see `window_boxes`), and
    those that `mapped` lists stand for: lists of source tiles, the source tile of each tile, the spans of source keys.
    """
    rows: tuple[int, ...] = (1, 1)
    source, lists, span = 0, NO_LISTS, (0, 0)
    if mapped is not None:
        columns, sources, spans = mapped
        columns = columns.packed()
        rows, lists = columns.indices.shape[:2], _lists(columns)
        source, span = sources.data_ptr(), (spans.data_ptr(), len(spans))
    lead = (*rows, boxes.shape[0])
    indices = torch.empty((*lead, capacity), dtype=torch.int32, device="cpu")
    counts = torch.empty(lead, dtype=torch.int32, device="cpu")
    call(
        "sparvar_union",
        (
            *lead,
            total,
            sinks,
            boxes.data_ptr(),
            boxes.shape[1],
            source,
            *lists,
            *span,
            indices.data_ptr(),
            counts.data_ptr(),
            capacity,
            torch.get_num_threads(),
        ),
        reports=True,
    )
    return Columns(indices, counts)
