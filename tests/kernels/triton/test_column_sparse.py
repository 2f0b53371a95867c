"""The Triton kernel of `column_sparse_attention`, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparvar.kernels import Columns, QueryTiles
from sparvar.kernels.column_sparse_attention import gpu, reference
from sparvar.kernels.common.blocks import Block
from tests.kernels.support import (
    DTYPES,
    HEAD_DIMS,
    assert_corrected,
    assert_within,
    qkv,
    random_columns,
    tiles_of,
    triton_bound,
)
from tests.kernels.test_column_sparse_attention import TILES, bad_lists

# grid and tile sides: ragged both ways, one query, tiles split into parts, part of a block, tiles of one
GEOMETRIES = [
    tiles_of(*sides)
    for sides in ((13, 9, 7, 3), (1, 1, 8, 16), (5, 31, 4, 16), (16, 18, 16, 18), (3, 2, 1, 1), (7, 40, 8, 32))
]


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Columns,
    scale: float,
    tiles: QueryTiles,
    correction: Tensor | None = None,
    choice: gpu.Choice = gpu.CHOSEN,
) -> Tensor:
    out = gpu.run(q, k, v, lists, scale, tiles, correction, choice)
    extra = None if correction is None else correction.double()
    exact = reference.run(q.double(), k.double(), v.double(), lists, scale, tiles, extra)
    mixed = reference.run(q.double(), k.double(), v.double().abs(), lists, scale, tiles)
    assert out.dtype == q.dtype
    return assert_corrected(out, exact, triton_bound(q, k, v, scale, exact, mixed, int(lists[1].max())), correction)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
def test_geometries_and_shared_lists(geometry: QueryTiles, shared: tuple[int, int]) -> None:
    q, k, v = qkv(2, 2, geometry.queries, 90, 16)
    check(q, k, v, random_columns(*shared, geometry.number, 90, 70), 0.25, geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(dim: int, dtype: torch.dtype) -> None:
    geometry = tiles_of(9, 11, 8, 8)
    q, k, v = qkv(1, 2, 99, 150, dim, dtype)
    check(q, k, v, random_columns(1, 2, 4, 150, 130), dim**-0.5, geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_large_logits(dtype: torch.dtype, scale: float) -> None:
    q, k, v = qkv(1, 1, 30, 200, 64, dtype, size=400.0)
    assert float((q.double() @ k.double().transpose(2, 3)).abs().max()) > 1e4
    check(q, k, v, random_columns(1, 1, 2, 200, 160), scale, tiles_of(5, 6, 3, 6))


@pytest.mark.parametrize("kept", [1, 2, 31, 32, 33, 63, 64, 65, 129])
def test_counts_around_blocks(kept: int) -> None:
    q, k, v = qkv(1, 1, 21, 140, 16)
    indices = torch.randperm(140)[:kept].sort().values.int().reshape(1, 1, 1, kept)
    lists = Columns(indices, torch.full((1, 1, 1), kept, dtype=torch.int32))
    check(q, k, v, lists, 0.25, tiles_of(7, 3, 7, 3))
    check(q, k, v, lists, 0.25, tiles_of(7, 3, 7, 3), choice=gpu.Choice(Block(64, 64, 4, 2), True))


def test_one_column_is_copied() -> None:
    q, k, v = qkv(1, 2, 20, 9, 64, size=100.0)
    lists = Columns(torch.full((1, 1, 1, 1), 7, dtype=torch.int32), torch.ones(1, 1, 1, dtype=torch.int32))
    assert torch.equal(check(q, k, v, lists, 1.0, tiles_of(4, 5, 4, 5)), v[:, :, 7:8].expand_as(q))


def test_every_column_is_dense_attention() -> None:
    q, k, v = qkv(2, 2, 48, 150, 64)
    every = torch.arange(150, dtype=torch.int32).expand(1, 1, 4, 150)
    lists = Columns(every, torch.full((1, 1, 4), 150, dtype=torch.int32))
    out = check(q, k, v, lists, 0.125, tiles_of(6, 8, 4, 4))
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.125)
    assert_within(out, dense, triton_bound(q, k, v, 0.125, dense, v.double().abs().max(), 150))


@pytest.mark.parametrize("correction_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correction(dtype: torch.dtype, correction_dtype: torch.dtype | None) -> None:
    q, k, v = qkv(2, 2, 30, 90, 24, dtype)
    correction = torch.randn(2, 30, 2, 24).to(correction_dtype or dtype).transpose(1, 2)
    check(q, k, v, random_columns(2, 1, 4, 90, 40), 0.2, tiles_of(5, 6, 4, 4), correction)


def test_strides() -> None:
    q, k, v = qkv(2, 3, 48, 90, 64)
    indices, counts = lists = random_columns(2, 3, 4, 90, 40)
    tiles = tiles_of(6, 8, 4, 4)
    base = gpu.run(q, k, v, lists, 0.125, tiles, None)
    blhc = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    buffers = [torch.full((2, 3, 200, 64), float("nan")) for _ in range(2)]
    slices = [buffer[:, :, :90].copy_(x) for buffer, x in zip(buffers, (k, v), strict=True)]
    odd = [torch.full((2, 3, 90, 67), float("nan"))[..., 1:65].copy_(x) for x in (k, v)]
    spread = torch.zeros(2, 3, 4, 90, dtype=torch.int32)
    spread[..., ::2][..., :40] = indices
    tile_major = indices.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    for call in (
        (*blhc, lists),
        (q, *slices, lists),
        (q, *odd, lists),
        (q, k, v, Columns(spread[..., ::2][..., :40], counts)),
        (q, k, v, Columns(tile_major, counts.transpose(1, 2).contiguous().transpose(1, 2))),
        (q.transpose(2, 3).contiguous().transpose(2, 3), k, v, lists),
    ):
        assert torch.equal(gpu.run(*call, 0.125, tiles, None), base)


def test_expanded_batch_and_shared_heads() -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    narrow = random_columns(1, 1, 2, 60, 20)
    one = gpu.run(q, k, v, narrow, 0.125, TILES, None)
    many = [x.expand(2, 3, -1, -1) for x in (q, k, v, narrow.indices)]
    for lists in (narrow, Columns(many[3], narrow.counts.expand(2, 3, -1))):
        assert torch.equal(gpu.run(*many[:3], lists, 0.125, TILES, None), one.expand(2, 3, -1, -1))


def windows(keys: int, runs: list[tuple[int, int]]) -> Columns:
    """One list per tile made of runs (first, length)."""
    mask = torch.zeros(keys, dtype=torch.bool)
    for first, length in runs:
        mask[first : first + length] = True
    columns = mask.nonzero().flatten().int()
    counts = torch.full((1, 1, 2), len(columns), dtype=torch.int32)
    return Columns(columns.expand(1, 1, 2, -1).contiguous(), counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "runs",
    [[(0, 200)], [(0, 64)], [(0, 32), (40, 32), (136, 64)], [(5, 31), (37, 33)], [(0, 1), (2, 1), (100, 99)]],
    ids=str,
)
def test_contiguous_steps_agree_with_gathers(runs: list[tuple[int, int]], dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 2, 24, 200, 40, dtype)
    lists = windows(200, runs)
    block = Block(32, 32, 4, 2)
    gathered = check(q, k, v, lists, 0.125, TILES, choice=gpu.Choice(block))
    assert torch.equal(check(q, k, v, lists, 0.125, TILES, choice=gpu.Choice(block, True)), gathered)


def test_a_key_that_no_tile_keeps_may_be_nan() -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    indices, counts = random_columns(1, 1, 2, 59, 20)
    k[:, :, 0] = v[:, :, 0] = k[:, :, 59] = v[:, :, 59] = float("nan")
    lists = Columns(indices + 1 - (indices > 57).int(), counts)
    assert gpu.run(q, k, v, lists, 0.125, TILES, None).isfinite().all()


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_is_not_hidden(where: str) -> None:
    inputs = dict(zip("qkv", qkv(1, 1, 24, 60, 64), strict=True))
    inputs[where][0, 0, 3, 5] = float("nan")
    out = gpu.run(*inputs.values(), bad_lists("none"), 0.125, TILES, None)
    assert out[0, 0, 3].isnan().any()


@pytest.mark.parametrize("kind", ["range", "negative", "duplicate", "zero", "many"])
@pytest.mark.parametrize("runs", [False, True])
def test_bad_lists_are_asserted_and_never_read_outside(kind: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    lists = bad_lists(kind)
    if kind == "range":  # far enough to be caught by the system
        lists.indices[0, 0, 1, 19] = 2**31 - 1
    elif kind == "negative":
        lists.indices[0, 0, 1, 0] = -(2**31)
    with pytest.raises(RuntimeError, match="indices, counts: must be ascending lists of keys that exist"):
        gpu.run(q, k, v, lists, 0.125, TILES, None, gpu.Choice(runs=runs))
    monkeypatch.setenv("SPARVAR_GPU_CHECKS", "off")
    out = gpu.run(q, k, v, lists, 0.125, TILES, None, gpu.Choice(runs=runs))
    good = gpu.run(q, k, v, bad_lists("none"), 0.125, TILES, None, gpu.Choice(runs=runs))
    assert torch.equal(out[:, :, :12], good[:, :, :12]) and out.isfinite().all()


def test_entries_beyond_the_count_are_not_read() -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    indices, _ = bad_lists("none")
    lists = Columns(indices, torch.full((1, 1, 2), 9, dtype=torch.int32))
    base = gpu.run(q, k, v, lists, 0.125, TILES, None)
    indices[..., 9:] = 1_000_000
    assert torch.equal(gpu.run(q, k, v, lists, 0.125, TILES, None), base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_every_candidate_of_the_search_is_right(dtype: torch.dtype, shared: bool) -> None:
    q, k, v = qkv(1, 2, 40, 150, 40, dtype)
    lists = random_columns(1, 1 if shared else 2, 2, 150, 140)
    found = gpu.candidates(40, dtype, shared)
    assert 3 <= len(found) <= 8 and any(config.kwargs["RUNS"] for config in found) == shared
    for config in found:
        block = Block(gpu.pinned(40, dtype, False).m, config.kwargs["BLOCK_N"], config.num_warps, config.num_stages)
        check(q, k, v, lists, 0.2, tiles_of(5, 8, 4, 8), choice=gpu.Choice(block, config.kwargs["RUNS"]))
