"""`column_sparse_attention` against dense attention under an explicit mask, in float64."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels import Columns, QueryTiles
from sparvar.kernels.column_sparse_attention import reference
from tests.kernels.support import (
    DTYPES,
    HEAD_DIMS,
    assert_corrected,
    assert_within,
    attention_bound,
    qkv,
    random_columns,
    tiles_of,
)

# grid and tile sides: ragged both ways, one query, one whole tile, more than 256 queries in a tile, tiles of one
GEOMETRIES = [
    tiles_of(*sides)
    for sides in (
        (13, 9, 7, 3),
        (1, 1, 8, 16),
        (8, 16, 8, 16),
        (5, 31, 4, 16),
        (20, 20, 20, 18),
        (3, 2, 1, 1),
        (33, 40, 32, 32),
    )
]
TILES = tiles_of(4, 6, 2, 6)


def check(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None = None
) -> Tensor:
    out = kernels.column_sparse_attention(q, k, v, columns, scale, tiles, correction)
    extra = None if correction is None else correction.double()
    exact = reference.run(q.double(), k.double(), v.double(), columns, scale, tiles, extra)
    assert out.dtype == q.dtype
    return assert_corrected(out, exact, attention_bound(q, k, v, scale, exact), correction)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
def test_geometries_and_shared_lists(implementation: str, geometry: QueryTiles, shared: tuple[int, int]) -> None:
    q, k, v = qkv(2, 3, geometry.queries, 200, 64)
    check(q, k, v, random_columns(*shared, geometry.number, 200, 140), 0.125, geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(implementation: str, dim: int, dtype: torch.dtype) -> None:
    geometry = tiles_of(9, 11, 8, 8)
    q, k, v = qkv(1, 2, 99, 300, dim, dtype)
    check(q, k, v, random_columns(1, 2, 4, 300, 130), dim**-0.5, geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(implementation: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 1, 30, 200, 64, dtype, size=400.0)
    check(q, k, v, random_columns(1, 1, 2, 200, 60), 1.0, tiles_of(5, 6, 3, 6))


@pytest.mark.parametrize("kept", [1, 2, 5, 6, 7, 125, 126, 127, 252, 253])
def test_counts_around_blocks_and_chunks(implementation: str, kept: int) -> None:
    q, k, v = qkv(1, 1, 21, 260, 64)
    indices, _ = random_columns(1, 1, 1, 260, 260)
    indices = torch.randperm(260)[:kept].sort().values.int().reshape(1, 1, 1, kept)
    lists = Columns(indices, torch.full((1, 1, 1), kept, dtype=torch.int32))
    check(q, k, v, lists, 0.125, tiles_of(7, 3, 7, 3))


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257])
def test_queries_around_groups_and_passes(implementation: str, queries: int) -> None:
    q, k, v = qkv(1, 1, queries, 50, 64)
    check(q, k, v, random_columns(1, 1, 1, 50, 40), 0.125, tiles_of(1, queries, 1, queries))


def test_every_column_is_dense_attention(implementation: str) -> None:
    q, k, v = qkv(2, 2, 48, 150, 64)
    every = torch.arange(150, dtype=torch.int32).expand(1, 1, 4, 150)
    lists = Columns(every, torch.full((1, 1, 4), 150, dtype=torch.int32))
    out = check(q, k, v, lists, 0.125, tiles_of(6, 8, 4, 4))
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.125)
    assert_within(out, dense, attention_bound(q, k, v, 0.125, dense))


@pytest.mark.parametrize("correction_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correction(implementation: str, dtype: torch.dtype, correction_dtype: torch.dtype | None) -> None:
    q, k, v = qkv(2, 2, 30, 90, 64, dtype)
    correction = torch.randn(2, 30, 2, 64).to(correction_dtype or dtype).transpose(1, 2)
    check(q, k, v, random_columns(2, 1, 4, 90, 40), 0.125, tiles_of(5, 6, 4, 4), correction)


def test_strides(implementation: str) -> None:
    q, k, v = qkv(2, 3, 48, 90, 64)
    indices, counts = lists = random_columns(2, 3, 4, 90, 40)
    tiles = tiles_of(6, 8, 4, 4)
    base = kernels.column_sparse_attention(q, k, v, lists, 0.125, tiles)
    blhc = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    buffers = [torch.full((2, 3, 200, 64), float("nan")) for _ in range(2)]
    slices = [buffer[:, :, :90].copy_(x) for buffer, x in zip(buffers, (k, v), strict=True)]
    spread = torch.zeros(2, 3, 4, 90, dtype=torch.int32)
    spread[..., ::2][..., :40] = indices
    tile_major = indices.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    for call in (
        (*blhc, lists),
        (q, *slices, lists),
        (q, k, v, Columns(spread[..., ::2][..., :40], counts)),
        (q, k, v, Columns(tile_major, counts.transpose(1, 2).contiguous().transpose(1, 2))),
        (q.transpose(2, 3).contiguous().transpose(2, 3), k, v, lists),
    ):
        assert torch.equal(kernels.column_sparse_attention(*call, 0.125, tiles), base)


def test_expanded_batch_and_shared_heads(implementation: str) -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    indices, counts = lists = random_columns(1, 1, 2, 60, 20)
    one = kernels.column_sparse_attention(q, k, v, lists, 0.125, TILES)
    spread = Columns(indices.expand(2, 3, -1, -1), counts.expand(2, 3, -1))
    many = kernels.column_sparse_attention(*(x.expand(2, 3, -1, -1) for x in (q, k, v)), spread, 0.125, TILES)
    assert torch.equal(many, one.expand(2, 3, -1, -1))


def test_same_bits_on_any_number_of_threads() -> None:
    if not (status := kernels.native_status()).usable:
        pytest.skip(f"no native kernels: {status.reason}")
    q, k, v = qkv(2, 4, 160, 200, 64)
    lists = random_columns(2, 4, 16, 200, 100)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(kernels.column_sparse_attention(q, k, v, lists, 0.125, tiles_of(10, 16, 3, 4)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, results[0]) for x in results)


def test_two_callers_at_once(implementation: str) -> None:
    inputs = [(*qkv(1, 4, 128, 300, 64), random_columns(1, 4, 8, 300, 200)) for _ in range(4)]
    tiles = tiles_of(8, 16, 4, 4)
    expected = [kernels.column_sparse_attention(*x, 0.125, tiles) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(kernels.column_sparse_attention(*inputs[i], 0.125, tiles), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes(implementation: str, mode: type) -> None:
    with mode():
        q, k, v = qkv(1, 1, 24, 60, 64)
        check(q, k, v, random_columns(1, 1, 2, 60, 20), 0.125, TILES)


def bad_lists(kind: str) -> Columns:
    indices = torch.arange(20, dtype=torch.int32).repeat(1, 1, 2, 1)
    counts = torch.full((1, 1, 2), 20, dtype=torch.int32)
    if kind == "range":
        indices[0, 0, 1, 19] = 60
    elif kind == "negative":
        indices[0, 0, 1, 0] = -1
    elif kind == "duplicate":
        indices[0, 0, 1, 7] = 6
    elif kind == "zero":
        counts[0, 0, 1] = 0
    elif kind == "many":
        counts[0, 0, 1] = 21
    return Columns(indices, counts)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("range", "indices: must name keys that exist"),
        ("negative", "indices: must name keys that exist"),
        ("duplicate", "indices: must be ascending without duplicates"),
        ("zero", "counts: must be from 1 to the capacity of indices"),
        ("many", "counts: must be from 1 to the capacity of indices"),
    ],
)
def test_bad_values(implementation: str, kind: str, text: str) -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    with pytest.raises(KernelError) as caught:
        kernels.column_sparse_attention(q, k, v, bad_lists(kind), 0.125, TILES)
    assert text in str(caught.value)
    if implementation == "native":
        assert "batch row 0, head 0, tile 1" in str(caught.value)
    out = kernels.column_sparse_attention(q, k, v, bad_lists("none"), 0.125, TILES)
    assert out.isfinite().all()  # a refused call leaves nothing behind


def test_entries_beyond_the_count_are_not_read(implementation: str) -> None:
    q, k, v = qkv(1, 1, 24, 60, 64)
    indices, _ = bad_lists("none")
    lists = Columns(indices, torch.full((1, 1, 2), 9, dtype=torch.int32))
    base = kernels.column_sparse_attention(q, k, v, lists, 0.125, TILES)
    indices[..., 9:] = 1_000_000
    assert torch.equal(kernels.column_sparse_attention(q, k, v, lists, 0.125, TILES), base)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"indices": torch.zeros(1, 1, 3, 4, dtype=torch.int32)}, "counts: must be the shape of indices"),
        ({"indices": torch.zeros(1, 1, 2, 4)}, "indices: must be int32, got torch.float32"),
        ({"counts": torch.ones(1, 1, 2)}, "counts: must be int32, got torch.float32"),
        ({"tiles": tiles_of(4, 6, 4, 6)}, "indices: must have one row for each of the 1 query tiles, got 2"),
        ({"tiles": tiles_of(4, 7, 2, 6)}, "q: must have grid_h * grid_w = 4 * 7 = 28 queries, got 24"),
        ({"correction": torch.zeros(2, 3, 24, 8)}, "correction: must be the shape of q, [2, 3, 24, 64]"),
        ({"correction": torch.zeros(2, 3, 24, 64).half()}, "correction: must be float32 or the dtype of q"),
        (
            {"indices": torch.zeros(2, 2, 2, 4, dtype=torch.int32), "counts": torch.ones(2, 2, 2, dtype=torch.int32)},
            "indices: must have 1 or 3 heads, got 2",
        ),
    ],
)
def test_errors(change: dict, text: str) -> None:
    q, k, v = qkv(2, 3, 24, 60, 64)
    lists = {
        "indices": torch.zeros(1, 1, 2, 4, dtype=torch.int32),
        "counts": torch.ones(1, 1, 2, dtype=torch.int32),
    }
    columns = Columns(**{name: change.get(name, tensor) for name, tensor in lists.items()})
    tiles, correction = change.get("tiles", TILES), change.get("correction")
    with pytest.raises(KernelError) as caught:
        kernels.column_sparse_attention(q, k, v, columns, 0.125, tiles, correction)
    assert text in str(caught.value)
