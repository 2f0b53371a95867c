"""The counts and kinds the runtime reads from a plan, its table, and plans made by rule."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparvar.errors import PlanError
from sparvar.scale_plans import ModelInfo, Plan, default_plan, dense_plan
from sparvar.scale_plans.geometry import kept_share, local_keys, window_extents
from tests.scale_plans.strategies import INFINITY, infinity_plan, plans

TABLE = """\
plan test  sha256:{digest}  not calibrated
model infinity: 10 sites, 16 heads of 128, bfloat16
tile 8x16, index map relative, output correction off, column sums from every query
sinks 421: prefix of 300, scales 1-5

scale     grid   tokens     keys      cs4a      csla  windows
    1      1x1        1      301     dense     dense
    2      2x2        4      305     dense     dense
    3      4x4       16      321     dense     dense
    4      6x6       36      357     dense     dense
    5      8x8       64      421     dense     dense
    6    12x12      144      565     dense     dense
    7    16x16      256      821     dense     dense
    8    20x20      400     1221     dense     dense
    9    24x24      576     1797     dense     dense
   10    32x32     1024     2821     dense     dense
   11    40x40     1600     4421    decide     dense
   12    48x48     2304     6725    28.7 %    12.9 %  cs4a 9 at 12; csla 1 at 9, 1 at 10, 3 at 11, 5 at 12
   13    64x64     4096    10821    25.1 %     9.1 %  cs4a 7 at 13; csla 1 at 9, 1 at 10, 3 at 11, 5 at 12, 7 at 13

dense layers: 0-1
cs4a layers: 2-6
csla layers: 7-9
attention kept: 49.1 % of dense multiply-adds (estimate)
note: made by rule, not calibrated: measure it before you trust it"""


def test_table() -> None:
    plan = infinity_plan(prefix=300)
    assert str(plan) == TABLE.format(digest=plan.digest[7:19])


def test_counts_with_a_prefix() -> None:
    plan = infinity_plan(prefix=300)
    assert [plan.tokens(scale) for scale in (1, 2, 13)] == [1, 4, 4096]
    assert [plan.keys(scale) for scale in (1, 2, 13)] == [301, 305, 10821]
    assert [plan.offset(scale) for scale in (1, 2, 13)] == [300, 301, 6725]
    assert plan.sinks == 421
    assert plan.columns_to_keep(13) == 2164
    assert plan.source_columns(13) == 2164
    assert plan.replace(index_map="footprint").source_columns(13) == round(2164 * 4421 / 10821)
    assert plan.replace(cs4a={13: {"budget": 0.9}}).source_columns(13) == 4421
    assert plan.windows_list(13) == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3, 5, 7]
    assert plan.windows_list(12) == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 3, 5]
    tiny = plan.replace(cs4a={13: {"budget": 1e-9}})
    assert tiny.columns_to_keep(13) == tiny.source_columns(13) == 1


def test_kinds() -> None:
    plan = infinity_plan()
    assert [plan.kind(scale, 0) for scale in (10, 11, 12, 13)] == ["dense"] * 4
    assert [plan.kind(scale, 2) for scale in (10, 11, 12, 13)] == ["dense", "decide", "sparse", "sparse"]
    assert [plan.kind(scale, 7) for scale in (10, 11, 12, 13)] == ["dense", "dense", "sparse", "sparse"]
    assert plan.planned_sites() == 5 * 3 + 3 * 2
    gap = plan.replace(cs4a={13: {"budget": 0.2}})
    assert [gap.kind(scale, 2) for scale in (11, 12, 13)] == ["decide", "dense", "sparse"]
    early = plan.replace(csla={5: {"windows": {4: 3}}})
    assert early.kind(5, 7) == "sparse"
    assert plan.replace(layers=["dense"] * 10).planned_sites() == 0


@pytest.mark.parametrize("scale", [0, -1, 14])
def test_scales_outside_the_schedule_are_refused(scale: int) -> None:
    plan = infinity_plan()
    for ask in (plan.tokens, plan.keys, plan.offset, plan.columns_to_keep, plan.windows_list):
        with pytest.raises(PlanError, match=r"scale: must be"):
            ask(scale)
    with pytest.raises(PlanError, match="scale: must be between 1 and 13"):
        plan.kind(scale, 0)


def test_layers_and_scales_without_an_entry_are_refused() -> None:
    plan = infinity_plan()
    with pytest.raises(PlanError, match="layer: must be between 0 and 9, got -1"):
        plan.kind(13, -1)
    with pytest.raises(PlanError, match=r"one of the plan's cs4a scales \(12, 13\), got 11"):
        plan.columns_to_keep(11)
    with pytest.raises(PlanError, match=r"one of the plan's csla scales \(12, 13\), got 11"):
        plan.windows_list(11)


@settings(max_examples=60)
@given(plans())
def test_any_plan_has_sound_counts_and_prints(plan: Plan) -> None:
    for scale, layer in itertools.product(range(1, plan.scales + 1), range(len(plan.layers))):
        kind = plan.kind(scale, layer)
        share = plan.kept_share(scale, plan.layers[layer])
        assert (kind == "sparse") == (share is not None)
        assert share is None or 0 < share <= 1
        if kind == "sparse" and plan.layers[layer] == "cs4a":
            assert 1 <= plan.columns_to_keep(scale) <= plan.keys(scale)
            assert 1 <= plan.source_columns(scale) <= plan.keys(plan.decision_scale or 0)
    assert 0 < plan.cost() <= 1 + 0.5 / plan.column_sum_stride**2
    assert "attention kept:" in str(plan)
    assert all(line.isprintable() for line in str(plan).split("\n"))


def test_published_key_counts_at_the_last_scale() -> None:
    """DESIGN of CSLA: 8x16 tiles read 682 of 10 521 keys on average, 746 at most."""
    keys = [count for _, count in local_keys(infinity_plan(), 13, [0] * 8 + [1, 1, 3, 5, 7])]
    assert len(keys) == 32
    assert round(sum(keys) / len(keys)) == 682
    assert max(keys) == 746


@settings(max_examples=100)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 10), st.integers(0, 4))
def test_extents_agree_with_enumeration(queries: int, keys: int, tile: int, reach: int) -> None:
    window = 2 * reach + 1
    expected = []
    for start in range(0, queries, tile):
        centres = [
            min(math.floor(y * keys / queries + 0.5), keys - 1) for y in range(start, min(start + tile, queries))
        ]
        cells = range(max(min(centres) - reach, 0), min(max(centres) + reach, keys - 1) + 1)
        expected.append(len(cells))
    assert window_extents(queries, keys, tile, window) == expected


def test_shares_and_cost() -> None:
    plan = infinity_plan()
    share = kept_share(plan, 13, "csla")
    assert share == pytest.approx(682 / 10521, rel=1e-3)
    assert kept_share(plan, 11, "csla") is None
    cs4a = kept_share(plan, 13, "cs4a")
    assert cs4a is not None
    assert 0.2 < cs4a < 0.25
    assert plan.replace(layers=["dense"] * 10).cost() == 1.0
    full = plan.replace(layers=["cs4a"] * 10, cs4a={13: {"budget": 1.0}}, column_sum_stride=2)
    decide = plan.tokens(11) * plan.keys(11)
    total = sum(plan.tokens(scale) * plan.keys(scale) for scale in range(1, 14))
    assert full.cost() == pytest.approx(1 + 0.125 * decide / total)


def test_dense_plan() -> None:
    plan = dense_plan(INFINITY, ModelInfo(sites=["a", "b"], heads=2, head_dim=64), prefix=7)
    assert plan.check() == []
    assert plan.planned_sites() == 0
    assert plan.decision_scale is None
    with pytest.raises(PlanError, match=r"model\.head_dim"):
        dense_plan(INFINITY, ModelInfo(sites=["a"], heads=2, head_dim=60))


def test_default_plan_follows_the_papers() -> None:
    plan = infinity_plan()
    assert plan.decision_scale == 11
    assert {scale: (entry.budget, entry.window) for scale, entry in plan.cs4a.items()} == {12: (0.2, 9), 13: (0.2, 7)}
    assert plan.sinks == 121
    assert not plan.provenance.calibrated
    assert "not calibrated" in plan.provenance.note


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=6),
    st.integers(1, 6),
    st.floats(0, 1),
)
def test_default_plan_fits_any_schedule(schedule: list[tuple[int, int]], layers: int, share: float) -> None:
    sites = [f"s{layer}" for layer in range(layers)]
    plan = default_plan(schedule, ModelInfo(sites=sites, heads=1, head_dim=8), cs4a_share=share)
    assert plan.check() == []
    assert (plan.planned_sites() > 0) == (len(schedule) > 1)
