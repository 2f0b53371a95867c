"""The record that decides by the image: files, contradictions, differences, the table, the plans it decides between."""

from __future__ import annotations

from typing import Any

import pytest

from sparvar.errors import PlanError
from sparvar.scale_plans import (
    Logistic,
    ModelInfo,
    Plan,
    default_plan,
    dense_plan,
    diff,
    graph_bound,
    transfer,
    transferable,
)

SCHEDULE = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
SHORT = SCHEDULE[:8]
MODEL = {"bias": -1.25, "weights": [30.5, -2.0]}
ADAPT: dict[str, Any] = {
    "fingerprint": "sha256:" + "0" * 64,
    "scale": 10,
    "skip": [MODEL, MODEL, MODEL],
    "conditional": [MODEL, MODEL],
}


def dense(layers: int = 6) -> Plan:
    return dense_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(layers)], heads=4, head_dim=64))


def test_it_survives_a_file_and_counts_in_the_digest() -> None:
    plan = dense().replace(adapt=ADAPT)
    again = Plan.loads(plan.dumps())
    assert again == plan and again.digest == plan.digest != dense().digest
    assert "adapt" not in dense().dumps() and plan.replace(adapt=None).digest == dense().digest
    changed = plan.replace(adapt={**ADAPT, "least": 0.75})
    assert str(diff(plan, changed)) == "adapt.least: 0.5 -> 0.75"
    assert str(diff(plan, dense())).startswith("adapt: ")
    fewer = plan.replace(adapt={**ADAPT, "conditional": [MODEL]})
    assert str(diff(plan, fewer)).startswith("adapt.conditional: ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapt": {**ADAPT, "scale": 13}}, "adapt.scale: must be a scale between 2 and 12, got 13"),
        ({"adapt": {**ADAPT, "scale": 1}}, "adapt.scale: must be a scale between 2 and 12, got 1"),
        (
            {"adapt": {**ADAPT, "scale": 11}},
            "adapt.skip: must decide on at most the 2 scales after scale 11 (40x40), got 3 models",
        ),
        ({"adapt": {**ADAPT, "skip": [], "conditional": []}}, "adapt: must have models for skip or conditional"),
        ({"adapt": {**ADAPT, "least": 1.5}}, "adapt.least: must be above 0 and at most 1, got 1.5"),
        ({"adapt": {**ADAPT, "fingerprint": ""}}, "adapt.fingerprint: must name the model that it was fitted on"),
        (
            {"adapt": {**ADAPT, "skip": [{"bias": 0.0, "weights": [1.0]}]}},
            "adapt.skip, model 0: must have 2 weights, of edges, fine, got 1",
        ),
        ({"adapt": ADAPT, "skip": {"last": 1}}, "adapt: must stand alone: it decides on skip, got a plan with skip"),
        (
            {"adapt": ADAPT, "guidance": {"conditional_from": 12}},
            "leave unconditional rows to the plan's guidance, or decide on them alone",
        ),
        ({"adapt": {**ADAPT, "last": 1}}, "adapt.last: unknown field; did you mean 'least'?"),
        (
            {"adapt": {**ADAPT, "skip": [{"bias": 0.0, "weight": [1.0]}]}},
            "did you mean 'weights'? valid: bias, weights",
        ),
        ({"skip": {"lst": 1}}, "skip.lst: unknown field; did you mean 'last'? valid: last"),
    ],
)
def test_contradictions(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        dense().replace(**changes)
    assert expected in str(caught.value)


def test_it_may_not_skip_what_columns_are_decided_for() -> None:
    sparse = default_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(6)], heads=4, head_dim=64))
    with pytest.raises(PlanError, match="must come before the last scale that is always drawn, 10"):
        sparse.replace(adapt=ADAPT)
    assert sparse.replace(adapt={**ADAPT, "skip": [MODEL]}).adapt is not None


def test_the_plans_that_it_decides_between() -> None:
    plan = dense().replace(adapt=ADAPT)
    skipped, rows, whole = plan.static_plan(2, 0), plan.static_plan(0, 2), plan.static_plan(0, 0)
    assert skipped.skip is not None and skipped.drawn == 11 and skipped.adapt is None
    assert rows.guidance is not None and rows.guidance.conditional_from == 12 and rows.drawn == 13
    assert whole == dense() and plan.drawn == 13 and plan.shortens and not whole.shortens
    assert graph_bound(plan) == (6, 15) and graph_bound(skipped) == (1, 11)
    with pytest.raises(PlanError, match="adapt: must be given where a generation decides"):
        dense().static_plan(1, 0)


def test_table() -> None:
    text = str(dense().replace(adapt=ADAPT))
    assert (
        "adaptive: after scale 10 (32x32), by what the image looks like, the last 1 to 3 scales may be skipped"
        " or the last 1 to 2 scales may do without unconditional rows\n"
        "  6 plans, at most 15 graphs; two more decodes in every generation\n"
    ) in text


def test_at_another_schedule_it_was_not_fitted() -> None:
    plan = dense().replace(adapt=ADAPT)
    there = transferable(plan).choose(SHORT)
    assert there.adapt is None and "the choice by the image was fitted at another schedule" in there.provenance.note
    assert transfer(plan, SCHEDULE).adapt == plan.adapt


def test_probabilities_of_extreme_images() -> None:
    model = Logistic(bias=0.0, weights=(1e6, 0.0))
    assert model.probability([1.0, 0.0]) == 1.0 and model.probability([-1.0, 0.0]) < 1e-300
