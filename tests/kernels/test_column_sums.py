"""`column_sums` and `select_columns` against their references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels import QueryTiles
from sparvar.kernels.attention_stats import reference as dense_reference
from sparvar.kernels.column_sums import reference
from sparvar.kernels.select_columns import reference as select_reference
from tests.kernels.support import DTYPES, LAMBDA, U, assert_within, qkv, score_error, tiles_of, weight_error

# grid and tile sides: ragged both ways, one query, one tile, tiles of more than 256 queries
GEOMETRIES = [
    tiles_of(*sides)
    for sides in ((13, 9, 7, 4), (1, 1, 8, 16), (8, 8, 8, 16), (5, 31, 4, 16), (20, 20, 20, 18), (3, 2, 1, 1))
]


def check(tiles: QueryTiles, stride: int, dim: int, dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 2, tiles.queries, 150, dim, dtype)
    (grid_h, grid_w), (tile_h, tile_w) = tiles
    scale = dim**-0.5
    lse = dense_reference.run(q.double(), k.double(), v.double(), scale)[1]
    sums = kernels.column_sums(q, k, lse.float(), scale, tiles, stride)
    exact = reference.run(q.double(), k.double(), lse, scale, tiles, stride)
    # Terms are positive, so the relative errors of weights, normaliser and sum carry over to the sum.
    sum_error = (LAMBDA * math.sqrt(tile_h * tile_w) + 2) * U
    relative = weight_error(q, k, scale) + 4 * U * float(lse.abs().max()) + sum_error
    assert sums.dtype == torch.float32 and sums.shape == exact.shape
    assert_within(sums, exact, relative * exact + 256 * 2.0**-126)
    rows, columns = -(-grid_h // tile_h), -(-grid_w // tile_w)
    sizes = [
        min(tile_h, grid_h - y * tile_h) * min(tile_w, grid_w - x * tile_w) for y in range(rows) for x in range(columns)
    ]
    if stride == 1:  # an unsampled row sums to the tile's query count
        torch.testing.assert_close(sums.double().sum(-1)[0, 0], torch.tensor(sizes).double(), rtol=relative, atol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_geometries(implementation: str, geometry: QueryTiles, stride: int) -> None:
    check(geometry, stride, 64, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 104, 128, 256])
def test_head_dims_and_dtypes(implementation: str, dim: int, dtype: torch.dtype) -> None:
    check(tiles_of(6, 7, 4, 4), 1, dim, dtype)


def test_own_lse_and_strides(implementation: str) -> None:
    q, k, v = qkv(2, 3, 48, 200, 64, size=30.0)
    _, lse, _ = kernels.attention_stats(q, k, v, 1.0)
    sums = kernels.column_sums(q, k, lse, 1.0, tiles_of(6, 8, 4, 4))
    bound = math.expm1(2 * score_error(q, k, 1.0)) + 0.001
    assert_within(sums.sum(-1), torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(2, 3, 4), 16 * bound)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    assert torch.equal(kernels.column_sums(*views, lse, 1.0, tiles_of(6, 8, 4, 4)), sums)


def test_sampled_rows_keep_their_total_on_average(implementation: str) -> None:
    q, k, v = qkv(1, 1, 64, 80, 64)
    _, lse, _ = kernels.attention_stats(q, k, v, 0.125)
    sums = kernels.column_sums(q, k, lse, 0.125, tiles_of(8, 8, 8, 8), 3)  # 9 of 64 queries, each a row of sum 1
    assert_within(sums.sum(-1), torch.full((1, 1, 1), 64.0), 64 * (2 * weight_error(q, k, 0.125) + 100 * U))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"tiles": tiles_of(5, 6, 2, 4)}, "q: must have grid_h * grid_w = 5 * 6 = 30 queries, got 24"),
        ({"tiles": tiles_of(4, 6, 2, 0)}, "tile_w: must be at least 1, got 0"),
        ({"stride": 0}, "stride: must be at least 1, got 0"),
        ({"lse": torch.zeros(1, 2, 23)}, "lse: must be [B, H, N] = [1, 2, 24], got [1, 2, 23]"),
        ({"lse": torch.zeros(1, 2, 24).half()}, "lse: must be float32, got torch.float16"),
    ],
)
def test_errors(arguments: dict, text: str) -> None:
    q, k, _ = qkv(1, 2, 24, 30, 16)
    call = {"lse": torch.zeros(1, 2, 24), "tiles": tiles_of(4, 6, 2, 4), "stride": 1, **arguments}
    with pytest.raises(KernelError) as caught:
        kernels.column_sums(q, k, scale=0.25, **call)
    assert text in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1e-40, 0.25, 0.5, 1.0, 3.0, math.inf, -math.inf, math.nan, -math.nan, -2.0]),
        min_size=1,
        max_size=70,
    ),
    budget=st.integers(1, 80),
)
def test_select_with_ties(implementation: str, values: list[float], budget: int) -> None:
    sums = torch.tensor(values).expand(2, 1, 3, -1)
    indices, counts = kernels.select_columns(sums, budget)
    exact, exact_counts = select_reference.run(sums, budget)
    assert indices.dtype == counts.dtype == torch.int32
    assert torch.equal(indices, exact) and torch.equal(counts, exact_counts)


def test_select_real_sums(implementation: str) -> None:
    sums = torch.rand(2, 3, 5, 4121)
    for budget in (1, 824, 4120, 4121, 9999):
        indices, counts = kernels.select_columns(sums, budget)
        exact, exact_counts = select_reference.run(sums, budget)
        assert torch.equal(indices, exact) and torch.equal(counts, exact_counts)


@pytest.mark.parametrize(
    ("sums", "budget", "text"),
    [
        (torch.zeros(2, 3, 4), 1, "sums: must be [B, H, G, T] with T at least 1, got [2, 3, 4]"),
        (torch.zeros(1, 1, 1, 4), 0, "budget: must be at least 1, got 0"),
        (torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16), 1, "sums: must be float32, got torch.bfloat16"),
    ],
)
def test_select_errors(sums: torch.Tensor, budget: int, text: str) -> None:
    with pytest.raises(KernelError) as caught:
        kernels.select_columns(sums, budget)
    assert text in str(caught.value)
