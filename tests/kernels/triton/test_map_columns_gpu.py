"""The Triton kernels of `map_columns` against the implementation in torch ops, which set-based references check."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparvar import kernels
from sparvar.kernels import ColumnMap, Columns, Schedule
from sparvar.kernels.map_columns import gpu, portable, reference
from tests.kernels.support import random_columns
from tests.kernels.triton.columns_support import DEVICE, POISON, run_poisoned

SIDES = (1, 2, 4, 8)
MAPS = ("identity", "relative", "footprint")


def check(columns: Columns, mapping: ColumnMap) -> tuple[Tensor, Tensor]:
    capacity = kernels.map_capacity(columns.indices.shape[3], mapping)
    exact, exact_counts = portable.run(columns, mapping, capacity)

    def run(indices: Tensor, counts: Tensor) -> Columns:
        return gpu.run(Columns(indices, counts), mapping, capacity)

    out, out_counts = run_poisoned(run, *columns)
    assert torch.equal(out_counts, exact_counts)
    assert torch.equal(out, exact)
    return out, out_counts


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_schedules(data: st.DataObject) -> None:
    scales = data.draw(st.integers(2, 5))
    sides = [sorted(data.draw(st.lists(st.integers(1, 9), min_size=scales, max_size=scales))) for _ in range(2)]
    prefix = data.draw(st.integers(0, 5))
    target = data.draw(st.integers(1, scales))
    source = data.draw(st.integers(1, target))
    tile = data.draw(st.integers(2, 6)), data.draw(st.integers(3, 8))
    batch, heads = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    heights, widths = sides
    keys = prefix + sum(h * w for h, w in zip(heights[:source], widths[:source], strict=True))
    tiles = -(-heights[source - 1] // tile[0]) * -(-widths[source - 1] // tile[1])
    torch.manual_seed(data.draw(st.integers(0, 999)))
    columns = random_columns(batch, heads, tiles, keys, data.draw(st.integers(1, keys)))
    index_map, sinks = data.draw(st.sampled_from(MAPS)), data.draw(st.integers(0, target))
    window = data.draw(st.sampled_from([0, 1, 3, 7]))
    schedule = Schedule(tuple(heights), tuple(widths), prefix)
    check(columns, ColumnMap(schedule, source, target, tile, index_map, sinks, window))


@pytest.mark.parametrize("index_map", MAPS)
@pytest.mark.parametrize(("heights", "widths"), [((1, 2, 4, 6), (2, 4, 6, 10)), ((2, 4, 6, 10), (1, 2, 4, 6))])
@pytest.mark.parametrize("window", [0, 1, 7])
def test_ratio_and_its_transpose(
    index_map: str, heights: tuple[int, ...], widths: tuple[int, ...], window: int
) -> None:
    prefix = 3
    keys = prefix + sum(h * w for h, w in zip(heights[:3], widths[:3], strict=True))
    tiles = -(-heights[2] // 3) * -(-widths[2] // 4)
    indices, counts = columns = random_columns(1, 1, tiles, keys, 9)
    for sinks in (0, 2, 4):
        mapping = ColumnMap(Schedule(heights, widths, prefix), 3, 4, (3, 4), index_map, sinks, window)
        out, out_counts = check(columns, mapping)
        lists = [row[:count] for row, count in zip(indices[0, 0].tolist(), counts[0, 0].tolist(), strict=True)]
        kept = [row[:count] for row, count in zip(out[0, 0].tolist(), out_counts[0, 0].tolist(), strict=True)]
        assert kept == reference.run(lists, mapping)


@pytest.mark.parametrize("index_map", MAPS)
def test_several_blocks_of_keys_and_of_source_columns(index_map: str) -> None:
    schedule = Schedule((1, 16, 32, 56), (1, 16, 32, 56))
    keys = 1 + 256 + 1024
    indices = torch.zeros(1, 1, 1, keys, dtype=torch.int32)
    indices[0, 0, 0, :600] = torch.randperm(keys)[:600].sort().values
    counts = torch.full((1, 1, 1), 600, dtype=torch.int32)
    columns = Columns(indices, counts)
    out, out_counts = check(columns, ColumnMap(schedule, 3, 4, (56, 56), index_map, 1, 7))
    assert int(counts) > gpu.MARK_BLOCK and int(out.max()) > gpu.ROW_UNIT
    assert out.shape[3] - int(out_counts.min()) > gpu.GATHER_BLOCK, "the tail of zeros spans blocks"


@pytest.mark.parametrize("index_map", MAPS)
@pytest.mark.parametrize("window", [0, 1, 7])
def test_one_compaction_for_several_target_tiles(index_map: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule((1, 2, 4, 8, 16), (1, 2, 4, 8, 18), 3)
    columns = random_columns(2, 2, 4, 3 + 85, 40)
    assert gpu.SHARED_FROM <= 5, "20 target tiles for 4 source tiles"
    for sinks in (0, 2, 5):
        mapping = ColumnMap(schedule, 4, 5, (4, 4), index_map, sinks, window)
        shared = check(columns, mapping)
        with monkeypatch.context() as apart:
            apart.setattr(gpu, "SHARED_FROM", 1000)
            single = check(columns, mapping)
        assert all(torch.equal(x, y) for x, y in zip(shared, single, strict=True))


def test_a_window_of_several_blocks_in_a_shared_list() -> None:
    schedule = Schedule((1, 16, 32, 56), (1, 16, 32, 56))
    check(random_columns(1, 2, 1, 257, 200), ColumnMap(schedule, 2, 4, (16, 56), "relative", 1, 7))
    first, end = gpu._hulls(torch.tensor([[[1281, 56, 10, 32, 0, 56]]]))[0]
    assert (end - first) * gpu.RANK_UNIT > gpu.SPREAD_BLOCK, "the rows around a tile's window"


@pytest.mark.parametrize("capacity", [6, 80])
def test_a_shared_list_stays_in_its_room(capacity: int) -> None:
    """Two source tiles of 64 keys, the first 8 of them sinks, and three target tiles each; 6 is room for fewer keys."""
    words, guard = gpu.ROW_UNIT // 4, 64
    absent = torch.full((2, 4 * words), 1, dtype=torch.uint8, device=DEVICE)
    absent[:, :64:2] = 0
    sinks = torch.ones(4 * words, dtype=torch.uint8, device=DEVICE)
    sinks[:8] = 0
    fixed = sinks.expand(3, -1).contiguous()
    fixed[1, 16:20], fixed[2, 65:70] = 0, 0
    hulls = torch.tensor([[0, 0], [0, 1], [1, 2]], dtype=torch.int32, device=DEVICE)
    sources = torch.zeros(3, dtype=torch.int32, device=DEVICE)

    def room(size: int) -> Tensor:
        return torch.full((size + 2 * guard,), POISON, dtype=torch.int32, device=DEVICE)

    lists, ranks, out, counts = room(2 * capacity), room(2 * (words // 16 + 1)), room(6 * capacity), room(6)
    row = absent.view(torch.int32), sinks.view(torch.int32), fixed.view(torch.int32)
    gpu.compact_kernel[(2,)](
        row[0], row[1], lists[guard:], ranks[guard:], words, capacity, BLOCK=gpu.GATHER_BLOCK, UNIT=16
    )
    gpu.spread_kernel[(6,)](
        row[0], row[2], hulls, sources, lists[guard:], ranks[guard:], out[guard:], counts[guard:], 3, 1, words,
        capacity, BLOCK=gpu.SPREAD_BLOCK, UNIT=16,
    )  # fmt: skip
    for buffer in (lists, ranks, out, counts):
        assert torch.all(buffer[:guard] == POISON) and torch.all(buffer[-guard:] == POISON)
    if capacity == 80:
        assert counts[guard:-guard].tolist() == [36, 38, 41] * 2
        for row_of, mask in zip(out[guard:-guard].view(6, capacity), fixed.repeat(2, 1), strict=True):
            kept = ((absent[0] & mask) == 0).nonzero().flatten()
            assert torch.equal(row_of[: len(kept)], kept.int()) and torch.all(row_of[len(kept) :] == 0)


def test_a_footprint_of_the_whole_grid() -> None:
    columns = Columns(torch.zeros(1, 1, 1, 3, dtype=torch.int32), torch.ones(1, 1, 1, dtype=torch.int32))
    _, out_counts = check(columns, ColumnMap(Schedule((1, 6), (1, 7)), 1, 2, (4, 4), "footprint", 0, 0))
    assert out_counts.unique().tolist() == [42]


def test_shared_and_strided_lists() -> None:
    mapping = ColumnMap(Schedule(SIDES, SIDES), 3, 4, (2, 4), "relative", 1, 3)
    indices, counts = columns = random_columns(2, 3, 2, 21, 10)
    plain = check(columns, mapping)
    other = indices.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    apart = counts.transpose(0, 2).contiguous().transpose(0, 2)
    assert all(torch.equal(x, y) for x, y in zip(plain, check(Columns(other, apart), mapping), strict=True))
    half = check(Columns(indices[:1], counts[:1]), mapping)
    assert torch.equal(half[0], plain[0][:1])


def test_tables_are_made_once() -> None:
    columns = random_columns(1, 1, 1, 5, 3)
    mapping = ColumnMap(Schedule((1, 2, 3), (1, 2, 3)), 2, 3, (4, 4), "relative", 0, 1)
    check(columns, mapping)
    made = gpu._tables.cache_info().misses
    check(columns, mapping)
    assert gpu._tables.cache_info().misses == made


BAD = {"high": (0, 21), "negative": (0, -1), "far": (3, 2**31 - 1), "count": (1, 11), "empty": (1, 0), "below": (1, -5)}


FOOTPRINT = ColumnMap(Schedule(SIDES, SIDES), 3, 4, (2, 2), "footprint", 1, 3)


def spoiled(what: str) -> Columns:
    """Return lists of 4 tiles with one bad value in the last."""
    indices, counts = random_columns(1, 1, 4, 21, 10)
    counts[:] = 10
    place, value = BAD[what]
    if what in ("count", "empty", "below"):
        counts[0, 0, 3] = value
    else:
        indices[0, 0, 3, place] = value
    return Columns(indices, counts)


@pytest.mark.parametrize("what", BAD)
@pytest.mark.skipif(DEVICE.type == "cuda", reason="a device-side assertion ends the CUDA context")
def test_bad_values_fail_the_assertion(what: str) -> None:
    with pytest.raises(RuntimeError, match="counts: must be from 1 to 10; indices: must name keys that exist, 0 to 20"):
        gpu.run(spoiled(what), FOOTPRINT, kernels.map_capacity(10, FOOTPRINT))


@pytest.mark.parametrize("what", [None, *BAD])
def test_only_the_rows_are_written(what: str | None) -> None:
    indices, counts = random_columns(1, 1, 4, 21, 10) if what is None else spoiled(what)
    capacity = kernels.map_capacity(10, FOOTPRINT)
    tables = gpu._tables(FOOTPRINT, DEVICE)
    tiles, row_bytes = tables.fixed.shape
    guard, rows = 256, indices.shape[2]
    absent = torch.full((rows * row_bytes + 2 * guard,), 7, dtype=torch.uint8, device=DEVICE)
    absent[guard:-guard] = 1
    valid = torch.ones(1, dtype=torch.uint8, device=DEVICE)
    out = torch.full((tiles * capacity + 2 * guard,), POISON, dtype=torch.int32, device=DEVICE)
    out_counts = torch.full((tiles + 2 * guard,), POISON, dtype=torch.int32, device=DEVICE)
    lists, lengths = indices.to(DEVICE), counts.to(DEVICE)
    strides = (*lists.stride()[:3], *lengths.stride())
    gpu.mark_kernel[(rows, 1)](
        lists, lengths, tables.spans, absent[guard:], valid, *strides, 1, rows, 10, 21, row_bytes, BLOCK=16
    )
    assert int(valid) == (what is None)
    assert torch.all(absent[:guard] == 7) and torch.all(absent[-guard:] == 7)
    assert set(absent[guard:-guard].unique().tolist()) <= {0, 1}
    total = 1 + 4 + 16 + 64
    assert torch.all(absent[guard:-guard].view(rows, row_bytes)[:, total:] == 1), "no key beyond the last"
    words = absent[guard:-guard].view(torch.int32), tables.fixed.view(torch.int32)
    gpu.gather_kernel[(tiles,)](
        *words, tables.sources, out[guard:], out_counts[guard:], tiles, rows, row_bytes // 4, capacity,
        BLOCK=gpu.GATHER_BLOCK,
    )  # fmt: skip
    for buffer in (out, out_counts):
        assert torch.all(buffer[:guard] == POISON) and torch.all(buffer[-guard:] == POISON)
    assert int(out[guard:-guard].min()) >= 0 and int(out[guard:-guard].max()) < total


def test_nothing_beyond_the_list_is_read() -> None:
    keys = torch.arange(16, dtype=torch.int32, device=DEVICE)  # the list is the first 10
    spans = torch.tensor([[key, 1, 1, 0] for key in range(16)], dtype=torch.int32, device=DEVICE)
    for count in (4, 10, 11):
        absent = torch.ones(32, dtype=torch.uint8, device=DEVICE)
        valid = torch.ones(1, dtype=torch.uint8, device=DEVICE)
        counts = torch.tensor([count], dtype=torch.int32, device=DEVICE)
        gpu.mark_kernel[(1, 1)](keys, counts, spans, absent, valid, 0, 0, 0, 0, 0, 0, 1, 1, 10, 16, 32, BLOCK=16)
        assert (absent == 0).nonzero().flatten().tolist() == list(range(min(count, 10)))
        assert int(valid) == (count <= 10)


def test_a_list_longer_than_its_room_stays_in_it() -> None:
    capacity, guard = 6, 64
    absent = torch.zeros(gpu.ROW_UNIT // 4, dtype=torch.int32, device=DEVICE)
    sources = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    out = torch.full((capacity + guard,), POISON, dtype=torch.int32, device=DEVICE)
    count = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    gpu.gather_kernel[(1,)](absent, absent, sources, out, count, 1, 1, len(absent), capacity, BLOCK=gpu.GATHER_BLOCK)
    assert out[:4].tolist() == [0, 1, 2, 3], "whole words of four keys"
    assert torch.all(out[capacity:] == POISON)
