"""The Triton kernel of `column_sums`, interpreted, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from sparvar.kernels import QueryTiles
from sparvar.kernels.attention_stats import reference as dense_reference
from sparvar.kernels.column_sums import gpu, reference
from sparvar.kernels.common.blocks import Block
from tests.kernels.support import DTYPES, HEAD_DIMS, LAMBDA, U, assert_within, qkv, score_error, tiles_of, weight_error

# grid and tile sides: ragged both ways, one query, tiles of one, tiles of more than one block of queries
GEOMETRIES = [
    tiles_of(*sides)
    for sides in ((13, 9, 7, 4), (1, 1, 8, 16), (8, 8, 8, 16), (5, 31, 4, 16), (20, 20, 20, 18), (3, 2, 1, 1))
]


def check(
    tiles: QueryTiles, stride: int, dim: int, dtype: torch.dtype, keys: int = 150, block: Block | None = None
) -> None:
    q, k, v = qkv(2, 2, tiles.queries, keys, dim, dtype)
    scale = dim**-0.5
    lse = dense_reference.run(q.double(), k.double(), v.double(), scale)[1]
    sums = gpu.run(q, k, lse.float(), scale, tiles, stride, block)
    exact = reference.run(q.double(), k.double(), lse, scale, tiles, stride)
    # Terms are positive, so the relative errors of weights, normaliser and sum carry over to the sum; nothing is
    # rounded to 16 bits on the way.
    sum_error = (LAMBDA * math.sqrt(math.prod(tiles.tile)) + 2) * U
    relative = weight_error(q, k, scale) + 4 * U * float(lse.abs().max()) + sum_error
    assert sums.dtype == torch.float32 and sums.shape == exact.shape
    assert_within(sums, exact, relative * exact + 256 * 2.0**-126)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_geometries(geometry: QueryTiles, stride: int) -> None:
    check(geometry, stride, 16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(dim: int, dtype: torch.dtype) -> None:
    check(tiles_of(6, 7, 4, 4), 1, dim, dtype)


@pytest.mark.parametrize("keys", [1, 31, 32, 33, gpu.SPAN - 1, gpu.SPAN, gpu.SPAN + 1, 2 * gpu.SPAN + 5])
def test_keys_around_blocks_and_spans(keys: int) -> None:
    check(tiles_of(3, 4, 2, 4), 1, 16, torch.float32, keys)
    check(tiles_of(3, 4, 2, 4), 1, 16, torch.bfloat16, keys, Block(16, 64, 4, 1))


def test_large_logits_and_their_own_lse() -> None:
    q, k, v = qkv(2, 3, 48, 200, 64, size=400.0)
    lse = dense_reference.run(q.double(), k.double(), v.double(), 1.0)[1]
    sums = gpu.run(q, k, lse, 1.0, tiles_of(6, 8, 4, 4), 1)
    # The error of a score of 1e4 is that of its normaliser too; both sit in the exponent.
    bound = math.expm1(score_error(q, k, 1.0) + 4 * U * float(lse.abs().max()))
    assert_within(sums.sum(-1), torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(2, 3, 4), 16 * bound + 0.001)


def test_strides() -> None:
    q, k, v = qkv(2, 3, 48, 200, 24)
    lse = dense_reference.run(q, k, v, 0.2)[1]
    sums = gpu.run(q, k, lse, 0.2, tiles_of(6, 8, 4, 4), 1)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    spread = torch.full((2, 3, 96), float("nan"))[..., ::2].copy_(lse)
    assert torch.equal(gpu.run(*views, spread, 0.2, tiles_of(6, 8, 4, 4), 1), sums)
    one = gpu.run(q[:1], k[:1], lse[:1], 0.2, tiles_of(6, 8, 4, 4), 1)
    both = gpu.run(*(x[:1].expand(2, *x.shape[1:]) for x in (q, k, lse)), 0.2, tiles_of(6, 8, 4, 4), 1)
    assert torch.equal(both, one.expand_as(both))


@pytest.mark.parametrize("where", ["q", "k", "lse"])
def test_nan_is_not_hidden(where: str) -> None:
    q, k, v = qkv(1, 1, 24, 60, 16)
    inputs = {"q": q, "k": k, "lse": dense_reference.run(q, k, v, 0.25)[1]}
    inputs[where][0, 0, 3] = float("nan")
    sums = gpu.run(**inputs, scale=0.25, tiles=tiles_of(4, 6, 4, 6), stride=1)
    assert sums[0, 0, 0, 3].isnan()
