"""Plans for several schedules, and those of published models."""

from __future__ import annotations

import pytest

from sparvar.errors import PlanError
from sparvar.scale_plans import (
    ModelInfo,
    Plan,
    PlanSet,
    default_plan,
    diff,
    find_published,
    infinity_schedules,
    load_plan,
    published_models,
)
from sparvar.scale_plans.presets.published import block_signature
from sparvar.scale_plans.presets.schedules import VAR_256, parse_schedule

SQUARE, WIDE, TALL = (parse_schedule(text) for text in ("1x1 2x2 4x4 6x6", "1x1 2x3 3x4 4x9", "1x1 3x2 4x3 9x4"))


def plan(schedule: tuple[tuple[int, int], ...], name: str = "p") -> Plan:
    return default_plan(schedule, ModelInfo(sites=["a", "b", "c"], heads=2, head_dim=64), name=name)


def test_the_schedule_chooses_and_a_transpose_is_another() -> None:
    plans = PlanSet.of([plan(SQUARE, "square"), plan(WIDE, "wide"), plan(TALL, "tall")])
    assert [plans.choose(grids).name for grids in (TALL, SQUARE, WIDE)] == ["tall", "square", "wide"]
    assert plan(WIDE).keys(4) == plan(TALL).keys(4)


def test_the_only_plan_needs_no_name_and_several_do() -> None:
    assert PlanSet.of([plan(SQUARE)]).choose(None).schedule == SQUARE
    with pytest.raises(PlanError, match="be named by the model's call"):
        PlanSet.of([plan(SQUARE), plan(WIDE)]).choose(None)


def test_a_rule_makes_the_plans_that_are_not_written_out() -> None:
    plans = PlanSet.of([plan(SQUARE)], rule=lambda schedule: plan(schedule, "made"))
    assert plans.choose(WIDE).name == "made" and plans.choose(WIDE).schedule == WIDE


@pytest.mark.parametrize("given", [[], [SQUARE, SQUARE]])
def test_empty_and_double_sets_are_refused(given: list[tuple[tuple[int, int], ...]]) -> None:
    with pytest.raises(PlanError, match=r"at least one plan|are both for"):
        PlanSet.of([plan(grids) for grids in given])


def test_infinity_has_fifteen_ratios_at_four_sizes() -> None:
    schedules = infinity_schedules()
    assert len(schedules) == 60 and len(set(schedules.values())) >= 58  # two ratios may agree while grids are small
    tokens = [sum(h * w for h, w in grids) for name, grids in schedules.items() if name.startswith("1M/")]
    assert (min(tokens), max(tokens)) == (10521, 11269)
    assert [len(schedules[f"{size}/1"]) for size in ("0.06M", "0.25M", "0.60M", "1M")] == [7, 10, 12, 13]


@pytest.mark.parametrize("name", published_models())
def test_published_plans_are_sound_at_every_schedule(name: str) -> None:
    model = published_models()[name]
    assert len(model.sites) == len(set(model.sites)) == model.depth
    for label, schedule in model.schedules.items():
        made = load_plan(f"{name}:{label}")
        assert made.check() == [] and made.schedule == schedule and made.prefix == model.prefix
        assert made.decision_scale == len(schedule) - 2 and made.layers.count("dense") == 2
        assert "uncalibrated" in made.provenance.note and not made.provenance.calibrated
    assert diff(load_plan(name), model.plans().plans[0]).lines == ()


def test_published_models_differ_in_their_blocks() -> None:
    signatures = [model.signature for model in published_models().values()]
    assert len(set(signatures)) == len(signatures)
    assert find_published([("blocks.0.attn.proj.weight", (8, 8))]) is None


def test_signature_knows_blocks_alone() -> None:
    blocks = [("blocks.0.attn.proj.weight", (8, 8)), ("blocks.0.ffn.fc1.weight", (32, 8))]
    mark = block_signature(blocks)
    assert block_signature([*reversed(blocks), ("text.weight", (3,)), ("blocks.0.attn.scale_mul_1H11", (1,))]) == mark
    assert block_signature([*blocks, ("blocks.1.x", (1,))]) != mark


@pytest.mark.parametrize(
    ("name", "says"),
    [("infinity-2b:9M", r"schedule: must be one of 1M/1, .*got 9M"), ("infinity-3b", "did you mean 'infinity-")],
)
def test_unknown_names_are_refused_with_those_there_are(name: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        load_plan(name)


def test_a_generations_schedule_without_a_rule_is_refused() -> None:
    assert published_models()["var-d16"].plans().choose(None).schedule == VAR_256
    assert published_models()["var-d16"].plans().choose(SQUARE).schedule == SQUARE  # FlexVAR names its schedules
    hart = published_models()["hart-0.7b"].plans()
    with pytest.raises(PlanError, match="be one that a plan covers"):
        hart.choose(SQUARE)
