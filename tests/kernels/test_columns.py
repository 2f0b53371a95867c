"""`map_columns` and `local_columns` against set-based references, on published and on random schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels import ColumnMap, Columns, LocalWindows, Schedule
from sparvar.kernels.local_columns import reference as local_reference
from sparvar.kernels.map_columns import reference as map_reference
from tests.kernels.support import random_columns

INFINITY = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
SPARVAR_WINDOWS = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3, 5, 7)
SIDES = (1, 2, 4, 8)
GOOD_MAP = ColumnMap(Schedule(SIDES, SIDES), 3, 4, (2, 2), "relative", 1, 3)
ANY = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Growing grids of any aspect ratio, and a prefix."""
    scales = draw(st.integers(2, 6))
    heights = sorted(draw(st.lists(st.integers(1, 13), min_size=scales, max_size=scales)))
    widths = sorted(draw(st.lists(st.integers(1, 17), min_size=scales, max_size=scales)))
    return Schedule(tuple(heights), tuple(widths), draw(st.integers(0, 9)))


def lists_of(indices: torch.Tensor, counts: torch.Tensor) -> list[list[int]]:
    """Return the lists of one batch row and head, having checked order and padding."""
    result = []
    for row, count in zip(indices.tolist(), counts.tolist(), strict=True):
        kept = row[:count]
        assert kept == sorted(set(kept)), "ascending without duplicates"
        assert not any(row[count:]), "zeros beyond the count"
        result.append(kept)
    return result


@ANY
@given(st.data())
def test_local_columns(implementation: str, data: st.DataObject) -> None:
    heights, widths, prefix = schedule = data.draw(schedules())
    target = data.draw(st.integers(1, len(heights)))
    tile = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 16))
    windows = data.draw(st.lists(st.sampled_from([0, 1, 3, 5, 7]), min_size=target, max_size=target))
    sinks = data.draw(st.integers(0 if any(windows) or prefix else 1, target))
    local = LocalWindows(schedule, target, tile, tuple(windows), sinks)
    exact = local_reference.run(local)
    indices, counts = kernels.local_columns(local)
    assert indices.shape == (1, 1, len(exact), kernels.local_capacity(local))
    assert indices.dtype == counts.dtype == torch.int32
    assert lists_of(indices[0, 0], counts[0, 0]) == exact
    assert int(counts.max()) == indices.shape[3], "the capacity is exact"
    leading = prefix + sum(h * w for h, w in zip(heights[:sinks], widths[:sinks], strict=True))
    assert all(kept[:leading] == list(range(leading)) for kept in exact)


def test_published_windows_keep_682_keys(implementation: str) -> None:
    local = LocalWindows(Schedule(INFINITY, INFINITY), 13, (8, 16), SPARVAR_WINDOWS, 5)
    indices, counts = kernels.local_columns(local)
    assert indices.shape == (1, 1, 32, 746)
    assert int(counts.max()) == 746
    assert round(float(counts.double().mean())) == 682
    assert lists_of(indices[0, 0], counts[0, 0]) == local_reference.run(local)


@ANY
@given(st.data())
def test_map_columns(implementation: str, data: st.DataObject) -> None:
    heights, widths, prefix = schedule = data.draw(schedules())
    target = data.draw(st.integers(1, len(heights)))
    source = data.draw(st.integers(1, target))
    tile = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    batch, heads = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    keys = prefix + sum(h * w for h, w in zip(heights[:source], widths[:source], strict=True))
    tiles = -(-heights[source - 1] // tile[0]) * -(-widths[source - 1] // tile[1])
    torch.manual_seed(data.draw(st.integers(0, 999)))
    indices, counts = random_columns(batch, heads, tiles, keys, data.draw(st.integers(1, keys)))
    index_map = data.draw(st.sampled_from(["identity", "relative", "footprint"]))
    sinks, window = data.draw(st.integers(0, target)), data.draw(st.sampled_from([0, 1, 3, 9]))
    mapping = ColumnMap(schedule, source, target, tile, index_map, sinks, window)
    out, out_counts = kernels.map_columns(Columns(indices, counts), mapping)
    assert out.shape[3] == kernels.map_capacity(indices.shape[3], mapping)
    assert out.dtype == out_counts.dtype == torch.int32
    for b in range(batch):
        for h in range(heads):
            given_lists = lists_of(indices[b, h], counts[b, h])
            assert lists_of(out[b, h], out_counts[b, h]) == map_reference.run(given_lists, mapping)


def test_relative_keeps_offsets_and_footprint_keeps_the_share(implementation: str) -> None:
    schedule = Schedule((4, 8, 16), (4, 8, 16))
    whole = torch.arange(16 + 4, dtype=torch.int32)[None, None, None]  # all of scales 4 x 4, and 4 keys of 8 x 8
    given = Columns(whole, torch.full((1, 1, 1), 20, dtype=torch.int32))
    mapping = ColumnMap(schedule, 2, 3, (16, 16), "relative", 0, 0)
    relative = lists_of(*(x[0, 0] for x in kernels.map_columns(given, mapping)))[0]
    assert len(relative) == 20
    assert relative[:4] == [16, 18, 20, 22] and relative[-4:] == [80, 82, 84, 86]
    mapping = mapping._replace(index_map="footprint")
    footprint = lists_of(*(x[0, 0] for x in kernels.map_columns(given, mapping)))[0]
    assert len(footprint) == 80, "every cell keeps its area: 4 keys at twice the side"
    assert footprint[:64] == list(range(16, 80)), "the whole of one scale stays the whole of the next"


def test_strided_lists(implementation: str) -> None:
    indices, counts = lists = random_columns(2, 3, 4, 21, 10)
    base = kernels.map_columns(lists, GOOD_MAP)
    other = indices.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    spread = Columns(other, counts.transpose(0, 2).contiguous().transpose(0, 2))
    halves = kernels.map_columns(spread, GOOD_MAP)
    assert all(torch.equal(x, y) for x, y in zip(base, halves, strict=True))


@pytest.mark.parametrize("what", ["high", "negative", "count", "empty"])
def test_bad_values(implementation: str, what: str) -> None:
    indices, counts = random_columns(1, 1, 4, 21, 10)
    counts[:] = 10
    if what == "high":
        indices[0, 0, 3, 9] = 21
    elif what == "negative":
        indices[0, 0, 3, 0] = -1
    else:
        counts[0, 0, 3] = 11 if what == "count" else 0
    text = "counts: must be from 1" if what in ("count", "empty") else "keys that exist"
    with pytest.raises(KernelError, match=text):
        kernels.map_columns(Columns(indices, counts), GOOD_MAP._replace(index_map="identity", window=0))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schedule": Schedule((1, 2, 4, 8), (1, 2, 4))}, "widths: must be as long as heights, 4, got 3"),
        ({"schedule": Schedule((), ())}, "heights: must name at least one scale"),
        ({"schedule": Schedule((1, 2, 0, 8), SIDES)}, "heights: must be at least 1 at every scale, got [1, 2, 0, 8]"),
        ({"schedule": Schedule(SIDES, SIDES, -1)}, "prefix: must not be negative, got -1"),
        ({"target_scale": 5}, "target_scale: must be a scale number from 1 to 4, got 5"),
        ({"source_scale": 0}, "source_scale: must be a scale number from 1 to 4, got 0"),
        ({"source_scale": 4, "target_scale": 3}, "source_scale: must be a scale number from 1 to 3, got 4"),
        ({"index_map": "zoom"}, "index_map: must be one of identity, relative, footprint, got 'zoom'"),
        ({"window": 4}, "window: must be an odd side, or 0 for none, got 4"),
        ({"sink_scales": 5}, "sink_scales: must be from 0 to the target scale, 4, got 5"),
        ({"tile": (0, 2)}, "tile_h: must be at least 1, got 0"),
        ({"tile": (4, 2)}, "indices: must have one row for each of the 2 query tiles, got 4"),
    ],
)
def test_map_errors(change: dict[str, Any], text: str) -> None:
    with pytest.raises(KernelError) as caught:
        kernels.map_columns(random_columns(1, 1, 4, 21, 10), GOOD_MAP._replace(**change))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("windows", "sinks", "text"),
    [
        ([0, 0, 3], 1, "windows: must name a side for each of the 4 scales, got 3 sides"),
        ([0, 0, 3, 4], 1, "windows: must be odd sides, or 0 for none, got [0, 0, 3, 4]"),
        ([0, 0, 0, 0], 0, "windows: must leave every query at least one key"),
    ],
)
def test_local_errors(windows: list[int], sinks: int, text: str) -> None:
    with pytest.raises(KernelError) as caught:
        kernels.local_columns(LocalWindows(Schedule(SIDES, SIDES), 4, (2, 2), tuple(windows), sinks))
    assert text in str(caught.value)
