"""Declaration of `column_sparse_rows`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_rows import cpu, portable
from sparvar.kernels.common.checks import attention_output, check_attention, check_columns, fail
from sparvar.kernels.common.columns import Columns, KeptTokens
from sparvar.kernels.common.library import ByDevice, define


def _checked(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, kept: KeptTokens, correction: Tensor | None
) -> tuple[Any, ...]:
    check_attention(q, k, v)
    tiles = columns.indices.shape[2] if columns.indices.dim() == 4 else 0
    check_columns(*columns, q.shape[0], q.shape[1], tiles, q.device)
    starts, alive = kept
    if starts.dtype != torch.int32 or starts.shape != (tiles + 1,) or starts.device != q.device:
        got = f"{starts.dtype} {list(starts.shape)} on {starts.device}"
        raise fail("starts", f"be int32 [{tiles + 1}], one more than the lists' tiles, on {q.device}", got)
    if alive is not None and (alive.dtype != torch.bool or alive.shape != (k.shape[2],) or alive.device != q.device):
        got = f"{alive.dtype} {list(alive.shape)} on {alive.device}"
        raise fail("alive", f"be bool [{k.shape[2]}], one for every key, on {q.device}", got)
    if correction is not None and (correction.shape != q.shape or correction.dtype not in (q.dtype, torch.float32)):
        got = f"{correction.dtype} {list(correction.shape)}"
        raise fail("correction", f"be {list(q.shape)} in float32 or {q.dtype}", got)
    return q, k, v, columns, scale, kept, correction


_op: Callable[..., Tensor] = define(
    "column_sparse_rows(Tensor q, Tensor k, Tensor v, Tensor indices, Tensor counts, Tensor starts, float scale, "
    "Tensor? alive=None, Tensor? correction=None) -> Tensor",
    lambda q, k, v, indices, counts, starts, scale, alive=None, correction=None: _checked(
        q, k, v, Columns(indices, counts), scale, KeptTokens(starts, alive), correction
    ),
    ByDevice("column_sparse_rows", cpu.run, portable.run, triton=False),
    lambda q, *_: attention_output(q),
)


def column_sparse_rows(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, kept: KeptTokens, correction: Tensor | None = None
) -> Tensor:
    """Return attention of gathered queries, each tile's to its kept columns.

    q [B, H, n, D] are the queries that exist, in the order of their tiles, as `kept.starts` says; a tile may be
    empty. k and v [B, H, T, D], of which `kept.alive` marks the keys that exist; others are left out of every list
    (pruned tokens never enter the cache). `columns` as for `column_sparse_attention`; correction [B, H, n, D] is added
    -> [B, H, n, D] in the dtype of q (memory [B, n, H, D]).

    Raises `KernelError` on wrong shapes, dtypes or devices, and where lists, starts or alive do not fit each other; on
    the CPU values are checked as they are read.
    """
    return _op(q, k, v, *columns, kept.starts, scale, kept.alive, correction)
