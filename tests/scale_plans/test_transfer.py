"""Plans carried to other sizes, ratios and numbers of scales."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparvar.errors import PlanError
from sparvar.scale_plans import Plan, infinity_schedules, load_plan, transfer, transferable
from sparvar.scale_plans.data import Thresholds
from sparvar.scale_plans.presets.schedules import squares
from tests.scale_plans.strategies import infinity_plan, plans

SCHEDULES = infinity_schedules()
SWEPT = Plan.load(Path(__file__).parents[2] / "benchmarks" / "plans" / "landscape-swept.json")
grids = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("source", ["landscape", "infinity-2b"])
def test_every_schedule_of_infinity_gets_a_sound_plan(source: str, name: str) -> None:
    plan = load_plan(source)
    there = transfer(plan, SCHEDULES[name])
    assert there.check() == []
    assert there.layers == plan.layers
    assert there.decision_scale is not None and there.decision_scale > there.sink_scales
    assert list(there.cs4a) == list(range(min(there.cs4a), there.scales + 1))
    assert there.decision_scale < min(there.cs4a)
    assert there.cs4a[there.scales].budget == plan.cs4a[plan.scales].budget
    assert there.sinks / there.keys(there.scales) <= plan.sinks / plan.keys(plan.scales)


def test_scales_correspond_by_relative_size_where_there_are_fewer() -> None:
    """1M has 32, 40, 48, 64 at its end, 0.25M 16, 20, 24, 32 and 0.06M 8, 12, 16, without an equal of 40 of 64."""
    plan = SWEPT
    assert (plan.decision_scale, [entry.budget for entry in plan.cs4a.values()]) == (10, [0.3, 0.15, 0.05])
    quarter = transfer(plan, SCHEDULES["0.25M/1"])
    assert quarter.decision_scale == 7
    assert {scale: entry.budget for scale, entry in quarter.cs4a.items()} == {8: 0.3, 9: 0.15, 10: 0.05}
    tiny = transfer(plan, SCHEDULES["0.06M/1"])
    assert tiny.decision_scale == 5
    assert {scale: entry.budget for scale, entry in tiny.cs4a.items()} == {6: 0.15, 7: 0.05}


def test_windows_go_to_the_corresponding_scales() -> None:
    plan = infinity_plan()
    assert plan.csla[13].windows == {9: 1, 10: 1, 11: 3, 12: 5, 13: 7}
    quarter = transfer(plan, SCHEDULES["0.25M/1"])
    # 12, 16, 20, 24 and 32 of 32 are 24, 32, 40, 48 and 64 of 64.
    assert list(quarter.csla) == [9, 10]
    assert quarter.csla[10].windows == {6: 1, 7: 1, 8: 3, 9: 5, 10: 7}
    assert quarter.csla[9].windows == {6: 1, 7: 1, 8: 3, 9: 5}
    assert {scale: entry.window for scale, entry in quarter.cs4a.items()} == {9: 9, 10: 7}


def test_windows_and_tile_are_cut_to_the_grid() -> None:
    there = transfer(infinity_plan(column_sum_stride=16), squares((1, 1, 2, 3)))
    assert there.check() == []
    assert there.tile == (3, 3) and there.column_sum_stride == 3
    assert (there.decision_scale, there.sink_scales) == (3, 0)
    assert there.cs4a[4].window == 5  # 7 at the source
    assert there.csla[4].windows == {3: 3, 4: 5}


def test_sinks_keep_their_share_and_a_prefix_counts() -> None:
    plan = infinity_plan()
    assert plan.sinks == 121 and plan.keys(13) == 10521
    there = transfer(plan, SCHEDULES["0.25M/1"])
    assert (there.sinks, there.keys(10)) == (21, 2521)  # the next scale would make it 57, over 121 of 10521
    assert transfer(plan, plan.schedule, prefix=100).sink_scales == 3
    assert transfer(plan, plan.schedule, prefix=300).sink_scales == 0
    assert transfer(plan, plan.schedule, prefix=300).prefix == 300


@given(plans())
def test_at_its_own_schedule_a_plan_is_itself(plan: Plan) -> None:
    assert transfer(plan, plan.schedule) == plan
    named = transfer(plan, [list(grid) for grid in plan.schedule], name="other")
    assert (named.digest, named.name, named.measured) == (plan.digest, "other", plan.measured)


@pytest.mark.parametrize("source", ["landscape", "infinity-2b", "infinity-2b:1M/1.5"])
def test_the_rule_itself_changes_nothing_where_every_grid_doubles(source: str) -> None:
    plan = load_plan(source)
    there = transfer(plan, [(2 * h, 2 * w) for h, w in plan.schedule])
    names = (
        "tile",
        "sink_scales",
        "decision_scale",
        "index_map",
        "output_correction",
        "layers",
        "cs4a",
        "csla",
        "model",
    )
    assert [getattr(there, name) for name in names] == [getattr(plan, name) for name in names]


@settings(max_examples=200)
@given(plans(), grids, st.none() | st.integers(0, 300))
def test_any_plan_goes_to_any_schedule(plan: Plan, schedule: list[tuple[int, int]], prefix: int | None) -> None:
    there = transfer(plan, schedule, prefix=prefix)
    assert there.check() == []
    assert there.schedule == tuple(schedule)
    assert (there.model, there.index_map) == (plan.model, plan.index_map)
    assert {entry.budget for entry in there.cs4a.values()} <= {entry.budget for entry in plan.cs4a.values()}
    for before, after in zip(plan.layers, there.layers, strict=True):
        assert after in (before, "dense")


def test_a_scale_whose_counterpart_is_dense_is_dense() -> None:
    plan = SWEPT
    plan = plan.replace(cs4a={13: plan.cs4a[13]})
    there = transfer(plan, SCHEDULES["0.25M/1"])
    assert list(there.cs4a) == [10]
    assert there.decision_scale == 7


def test_one_scale_is_all_dense_and_the_plan_says_so() -> None:
    there = transfer(SWEPT, [(32, 32)])
    assert there.planned_sites() == 0
    assert (there.decision_scale, dict(there.cs4a), set(there.layers)) == (None, {}, {"dense"})
    assert "layers became dense" in there.provenance.note


def test_it_says_where_it_comes_from_and_measures_nothing() -> None:
    plan = SWEPT.replace(measured={"psnr_db": 32.0})
    there = transfer(plan, SCHEDULES["1M/1.5"])
    assert there.name == "landscape@78x52"
    assert not there.provenance.calibrated and not there.measured
    assert there.model.fingerprint == plan.model.fingerprint
    for text in ("carried over from landscape", plan.digest, "13 scales, 1x1 to 64x64", "not calibrated"):
        assert text in there.provenance.note


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ([], "schedule: must have at least one scale, got none"),
        ([(1, 1), (0, 2)], r"scale 2: must have sides between 1 and 4096, got \[0, 2\]"),
        ([(1, 1), (2, 5000)], r"scale 2: must have sides between 1 and 4096, got \[2, 5000\]"),
    ],
)
def test_bad_schedules(schedule: list[tuple[int, int]], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        transfer(SWEPT, schedule)


def test_where_pruning_starts_goes_along() -> None:
    bare = SWEPT.replace(thresholds=Thresholds())
    assert transfer(bare, SCHEDULES["0.25M/1"]).thresholds == bare.thresholds
    thresholds = Thresholds(
        tau=0.4,
        beta=0.1,
        alpha_min=0.1,
        alpha_max=0.5,
        start=11,
        representative=6,
        scores=(0.0,) * (len(bare.layers) - 1) + (0.8,),
        min_keep=0.1,
    )
    there = transfer(bare.replace(thresholds=thresholds), SCHEDULES["0.25M/1"])
    assert there.check() == []
    # Of 64, 40 and 12 cells; 32 has 20 and 6 in the middle of 4 and 8, the later of which is as near.
    assert there.grid(there.thresholds.start or 0) == (20, 20)
    assert there.grid(there.thresholds.representative or 0) == (6, 6)
    assert there.thresholds.scores == thresholds.scores


def test_carried_serves_any_schedule() -> None:
    plan = SWEPT
    plans = transferable(plan)
    assert plans.choose(None) is plan
    assert plans.choose(plan.schedule) is plan
    wide = SCHEDULES["1M/0.666"]
    assert plans.choose(wide) == transfer(plan, wide)
