"""Schema, fake, checks and dispatch of `column_sparse_rows`."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_attention import cpu as tiles_cpu
from sparvar.kernels.column_sparse_rows import portable
from sparvar.kernels.common.checks import attention_output, check_attention, check_columns, check_inference, fail
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native

__all__ = ["column_sparse_rows"]


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    starts: Tensor,
    alive: Tensor | None,
    correction: Tensor | None,
) -> None:
    check_attention(q, k, v)
    tiles = indices.shape[2] if indices.dim() == 4 else 0
    check_columns(indices, counts, q.shape[0], q.shape[1], tiles, q.device)
    if starts.dtype != torch.int32 or starts.shape != (tiles + 1,) or starts.device != q.device:
        got = f"{starts.dtype} {list(starts.shape)} on {starts.device}"
        raise fail("starts", f"be int32 [{tiles + 1}], one more than the lists' tiles, on {q.device}", got)
    if alive is not None and (alive.dtype != torch.bool or alive.shape != (k.shape[2],) or alive.device != q.device):
        got = f"{alive.dtype} {list(alive.shape)} on {alive.device}"
        raise fail("alive", f"be bool [{k.shape[2]}], one for every key, on {q.device}", got)
    if correction is not None and (correction.shape != q.shape or correction.dtype not in (q.dtype, torch.float32)):
        got = f"{correction.dtype} {list(correction.shape)}"
        raise fail("correction", f"be {list(q.shape)} in float32 or {q.dtype}", got)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    starts: Tensor,
    scale: float,
    alive: Tensor | None = None,
    correction: Tensor | None = None,
) -> Tensor:
    _check(q, k, v, indices, counts, starts, alive, correction)
    check_inference("column_sparse_rows", q, k, v, correction)
    if q.device.type == "cpu" and q.dtype != torch.float64 and use_native():
        starts, alive = starts.contiguous(), None if alive is None else alive.contiguous()
        tiles = indices.shape[2]
        # The geometry says how many tiles there are; which rows they hold, `starts` does.
        return tiles_cpu.run(q, k, v, indices, counts, scale, 1, tiles, 1, 1, correction, starts, alive)
    return portable.run(q, k, v, indices, counts, starts, scale, alive, correction)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    starts: Tensor,
    scale: float,
    alive: Tensor | None = None,
    correction: Tensor | None = None,
) -> Tensor:
    _check(q, k, v, indices, counts, starts, alive, correction)
    return attention_output(q)


_op = define(
    "column_sparse_rows(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, Tensor starts, float scale, "
    "Tensor? alive=None, Tensor? correction=None) -> Tensor",
    _run,
    _fake,
)


def column_sparse_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    starts: Tensor,
    scale: float,
    alive: Tensor | None = None,
    correction: Tensor | None = None,
) -> Tensor:
    """Return attention of gathered queries, each tile's to its kept columns.

    q [B, H, n, D] are the queries that exist, in the order of their tiles: tile g's are rows starts[g] to
    starts[g + 1], with starts int32 [G + 1] from 0 to n; a tile may be empty. k and v [B, H, T, D]; indices int32
    [B', H', G, K] and counts int32 [B', H', G] as for `column_sparse_attention`; alive bool [T] marks the keys that
    exist, others are left out of every list (pruned tokens never enter the cache); correction [B, H, n, D] is added
    -> [B, H, n, D] in the dtype of q (memory [B, n, H, D]).

    Raises `KernelError` on wrong shapes, dtypes or devices, and where lists, starts or alive do not fit each other; on
    the CPU values are checked as they are read.
    """
    result: Tensor = _op(q, k, v, indices, counts, starts, scale, alive, correction)
    return result
