"""`column_sparse_rows` against dense attention under an explicit mask, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels import Columns, KeptTokens
from sparvar.kernels.column_sparse_rows import reference
from tests.kernels.support import (
    DTYPES,
    HEAD_DIMS,
    assert_within,
    attention_bound,
    poison_scratch,
    qkv,
    random_columns,
    tiles_of,
)

#: Queries of each tile: even, with empty tiles at both ends and between, one tile that has all, more than one pass.
SIZES = [(7, 7, 7), (0, 5, 0, 130, 1, 0), (0, 40), (40, 0), (300, 1, 64), (1,)]


def starts_of(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)


def alive_of(keys: int, always: int = 3) -> Tensor:
    alive = torch.rand(keys) < 0.6
    alive[:always] = True
    return alive


def lists_with_sinks(batch: int, heads: int, tiles: int, keys: int, capacity: int) -> Columns:
    """Random lists that begin with key 0, which is always alive."""
    columns = random_columns(batch, heads, tiles, keys, capacity)
    columns.indices[..., 0] = 0
    return columns


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Columns,
    scale: float,
    tokens: KeptTokens,
    correction: Tensor | None = None,
) -> Tensor:
    poison_scratch()
    out = kernels.column_sparse_rows(q, k, v, columns, scale, tokens, correction)
    extra = None if correction is None else correction.double()
    exact = reference.run(q.double(), k.double(), v.double(), columns, scale, tokens, extra)
    assert out.shape == q.shape and out.dtype == q.dtype and out.transpose(1, 2).is_contiguous()
    bound = attention_bound(q, k, v, scale, exact)
    if extra is not None:
        bound = bound + 2.0**-22 * (exact.abs() + extra.abs())
    assert_within(out, exact, bound)
    return out


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shared", [(1, 1), (2, 3)], ids=str)
def test_sizes_of_tiles(implementation: str, sizes: tuple[int, ...], shared: tuple[int, int]) -> None:
    q, k, v = qkv(2, 3, sum(sizes), 200, 64)
    lists = lists_with_sinks(*shared, len(sizes), 200, 140)
    check(q, k, v, lists, 0.125, KeptTokens(starts_of(sizes), alive_of(200)))
    check(q, k, v, lists, 0.125, KeptTokens(starts_of(sizes)), torch.randn_like(q))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(implementation: str, dim: int, dtype: torch.dtype) -> None:
    sizes = (9, 0, 50)
    q, k, v = qkv(1, 2, 59, 300, dim, dtype)
    check(q, k, v, lists_with_sinks(1, 2, 3, 300, 130), dim**-0.5, KeptTokens(starts_of(sizes), alive_of(300)))


def test_large_logits_and_strided_inputs(implementation: str) -> None:
    base = torch.randn(2, 90, 3, 2, 64) * 20
    q, k, v = (part.transpose(1, 2) for part in base.unbind(2))
    tokens = KeptTokens(starts_of((9, 0, 50)), alive_of(90))
    check(q[:, :, :59], k, v, lists_with_sinks(1, 2, 3, 90, 40), 1.0, tokens)


def test_all_tokens_is_column_sparse_attention() -> None:
    q, k, v = qkv(1, 2, 8 * 12, 200, 64)
    lists = random_columns(1, 2, 6, 200, 50)
    whole = kernels.column_sparse_attention(q, k, v, lists, 0.125, tiles_of(8, 12, 4, 4))
    order = torch.arange(96).view(2, 4, 3, 4).transpose(1, 2).flatten()
    rows = kernels.column_sparse_rows(q[:, :, order], k, v, lists, 0.125, KeptTokens(starts_of((16,) * 6)))
    assert torch.equal(rows, whole[:, :, order])


def test_opcheck() -> None:
    q, k, v = qkv(1, 2, 20, 60, 64)
    given = (*random_columns(1, 1, 3, 60, 20), starts_of((7, 7, 6)), 0.125, None, None)
    torch.library.opcheck(torch.ops.sparvar.column_sparse_rows.default, (q, k, v, *given))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"starts": torch.tensor([0, 9, 4, 20], dtype=torch.int32)}, "starts: must ascend from 0"),
        ({"starts": torch.tensor([1, 9, 14, 20], dtype=torch.int32)}, "starts: must ascend from 0"),
        ({"starts": torch.tensor([0, 9, 14, 19], dtype=torch.int32)}, "starts: must ascend from 0"),
        ({"starts": torch.tensor([0, 9, 14, 20])}, r"starts: must be int32 \[4\]"),
        ({"alive": torch.ones(59, dtype=torch.bool)}, r"alive: must be bool \[60\]"),
        ({"alive": torch.zeros(60, dtype=torch.bool)}, "alive: must leave every list a key"),
        ({"correction": torch.zeros(1, 2, 19, 64)}, "correction: must be"),
    ],
)
def test_bad_arguments(change: dict[str, Tensor], expected: str) -> None:
    q, k, v = qkv(1, 2, 20, 60, 64)
    tokens = KeptTokens(change.get("starts", starts_of((7, 7, 6))), change.get("alive"))
    with pytest.raises(KernelError, match=expected):
        kernels.column_sparse_rows(q, k, v, random_columns(1, 1, 3, 60, 20), 0.125, tokens, change.get("correction"))
