"""Every op on a CUDA device against its float64 reference, and the shipped model under the backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar import kernels
from sparvar.kernels.attention_stats import reference as stats_reference
from sparvar.kernels.column_sparse_attention import reference as sparse_reference
from sparvar.kernels.column_sums import reference as sums_reference
from sparvar.kernels.map_columns import reference as map_reference
from sparvar.kernels.select_columns import reference as select_reference
from sparvar.zoo import landscape, shaped
from tests.kernels.support import DTYPES, LAMBDA, U, assert_within, qkv, random_columns, triton_bound, weight_error

pytestmark = pytest.mark.gpu
HEAD_DIMS = (64, 96, 104, 112, 120, 128)
SMALL, LARGE = "small", "large"


def on_gpu(*tensors: Tensor) -> list[Tensor]:
    torch.cuda.empty_cache()
    torch.full((1 << 24,), float("nan"), device="cuda")  # what freed memory holds
    return [tensor.cuda() for tensor in tensors]


def sizes(size: str) -> tuple[int, int, int]:
    """Grid and keys."""
    return (9, 13, 150) if size == SMALL else (40, 48, 4000)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_attention_stats(dim: int, dtype: torch.dtype, size: str) -> None:
    h, w, keys = sizes(size)
    q, k, v = qkv(2, 2, h * w, keys, dim, dtype)
    scale = dim**-0.5
    out, lse, entropy = (part.cpu() for part in kernels.attention_stats(*on_gpu(q, k, v), scale))
    exact, exact_lse, exact_entropy = stats_reference.run(q.double(), k.double(), v.double(), scale)
    mixed = stats_reference.run(q.double(), k.double(), v.double().abs(), scale)[0]
    assert_within(out, exact, triton_bound(q, k, v, scale, exact, mixed, keys))
    rounding = weight_error(q, k, scale) + (LAMBDA * math.sqrt(keys) + 8) * U
    assert_within(lse, exact_lse, rounding * (1 + exact_lse.abs()))
    assert_within(entropy, exact_entropy, 4 * rounding * (1 + math.log(keys)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_column_sums_small(dtype: torch.dtype, stride: int) -> None:
    h, w, keys = sizes(SMALL)
    q, k, v = qkv(2, 2, h * w, keys, 64, dtype)
    lse = stats_reference.run(q.double(), k.double(), v.double(), 0.125)[1].float()
    geometry = (h, w, 8, 16)
    sums = kernels.column_sums(*on_gpu(q, k, lse), 0.125, *geometry, stride).cpu()
    exact = sums_reference.run(q.double(), k.double(), lse.double(), 0.125, *geometry, stride)
    assert_within(sums, exact, (weight_error(q, k, 0.125) + 64 * U) * exact.abs() + 1e-30)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_select_columns(size: str) -> None:
    total, kept = (300, 37) if size == SMALL else (10521, 2104)
    sums = torch.rand(2, 3, 4, total).round(decimals=3)  # with ties
    actual = kernels.select_columns(*on_gpu(sums), kept)
    for got, expected in zip(actual, select_reference.run(sums, kept), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("index_map", ["identity", "relative", "footprint"])
def test_map_columns_small(index_map: str) -> None:
    schedule = [1, 2, 4, 6, 8, 12], [1, 3, 5, 8, 12, 16]
    source = sum(h * w for h, w in zip(*schedule, strict=True)) - 12 * 16
    lists = random_columns(2, 2, 2, source, 60)
    fixed = (*schedule, 3, 5, 6, 8, 8, index_map, 2, 3)
    shifted = (lists[0] + 3).clamp(max=source + 2), lists[1]
    actual = kernels.map_columns(*on_gpu(*shifted), *fixed)
    expected = kernels.map_columns(*shifted, *fixed)
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got.cpu(), wanted)
    assert map_reference is not None


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_column_sparse_attention(dim: int, dtype: torch.dtype, size: str) -> None:
    h, w, keys = sizes(size)
    q, k, v = qkv(2, 2, h * w, keys, dim, dtype)
    scale, geometry = dim**-0.5, (h, w, 8, 16)
    tiles = -(-h // 8) * -(-w // 16)
    lists = random_columns(2, 2, tiles, keys, keys // 3)
    given = on_gpu(*(part.transpose(1, 2).contiguous().transpose(1, 2) for part in (q, k, v)), *lists)
    out = kernels.column_sparse_attention(*given, scale, *geometry).cpu()
    exact = sparse_reference.run(q.double(), k.double(), v.double(), *lists, scale, *geometry)
    mixed = sparse_reference.run(q.double(), k.double(), v.double().abs(), *lists, scale, *geometry)
    assert_within(out, exact, triton_bound(q, k, v, scale, exact, mixed, keys // 3))


def test_the_shipped_model_draws_what_it_draws_on_the_cpu() -> None:
    """Same seed, dense on both: noise is drawn on the CPU, so images differ by rounding and the bits that it flips."""
    model = landscape()
    expected = model.generate(["mountain"], seed=0)
    model.cuda()
    dense = model.generate(["mountain"], seed=0).cpu()
    sparse = torch.compile(model, backend="sparvar").generate(["mountain"], seed=0).cpu()  # type: ignore[operator]
    assert (dense - expected).square().mean() < 1e-3
    assert (sparse - dense).square().mean() < 1e-2


def test_no_host_synchronisation_in_a_sparse_scale() -> None:
    """After the first generation nothing waits for the device before the end."""
    from sparvar.scale_plans import default_plan

    schedule = ((1, 1), (2, 2), (4, 4), (8, 8), (12, 12), (16, 16))
    model = shaped("tiny", schedule).cuda().bfloat16()
    names = [f"blocks.{i}.sa" for i in range(model.shape.depth)]
    sparvar.compile(model, default_plan(schedule, names, heads=2, head_dim=64))
    model.generate(seed=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.generate(seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
