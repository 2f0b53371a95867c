"""Entropy thresholds in plans: what they mean, how they are written, and which contradict each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparvar.errors import PlanError
from sparvar.scale_plans import (
    Plan,
    Thresholds,
    diff,
    json_schema,
    keep_count,
    layer_score,
    load_plan,
    start_scale,
)
from tests.scale_plans.strategies import infinity_plan, share

WHOLE: dict[str, Any] = {
    "tau": 0.4,
    "beta": 0.01,
    "alpha_min": 0.1,
    "alpha_max": 0.5,
    "start": 9,
    "representative": 6,
    "scores": [0.0] * 5 + [0.8, 0.9, 0.9, 0.0, 0.0],
    "min_keep": 0.1,
}
PUBLISHED = {"tau": 0.4, "beta": 1.5, "alpha_min": 0.1, "alpha_max": 0.5}


@pytest.mark.parametrize(
    ("rho", "tau", "start"),
    [
        ({2: 0.3, 3: 0.35, 4: 0.45, 5: 0.6}, 0.4, 4),
        ({2: 0.3, 3: 0.5, 4: 0.3, 5: 0.6}, 0.4, 3),
        ({5: 0.6, 3: 0.4, 2: 0.3}, 0.4, 3),
        ({2: 0.3, 3: 0.39}, 0.4, None),
        ({}, 0.4, None),
    ],
)
def test_the_start_is_the_first_scale_that_reaches_tau(rho: dict[int, float], tau: float, start: int | None) -> None:
    assert start_scale(rho, tau) == start


def test_layer_scores() -> None:
    assert layer_score(1, 2.5) == 1
    assert layer_score(3, math.log(2) / 2) == pytest.approx(0.5, rel=1e-15)
    assert layer_score(math.inf, 0.1) == 0


def test_tokens_kept_by_hand() -> None:
    whole = Thresholds.model_validate({**WHOLE, "scores": tuple(WHOLE["scores"])})
    # 0.1 + 0.4 * 13/13 * 0.9 = 0.46 of 4096 tokens is 1884.16; at scale 9, 0.1 + 0.4 * 9/13 * 0.8 = 0.3215 of 576.
    assert keep_count(whole, 13, 6, 4096, 13) == 4096 - 1884
    assert keep_count(whole, 9, 5, 576, 13) == 576 - 185
    assert keep_count(whole, 8, 6, 400, 13) == 400  # before the start
    assert keep_count(whole, 13, 0, 4096, 13) == 4096  # kept layer
    assert keep_count(Thresholds(), 13, 0, 4096, 13) == 4096
    greedy = whole.model_copy(update={"alpha_min": 1.0, "alpha_max": 1.0})
    assert keep_count(greedy, 13, 6, 30, 13) == 3
    assert keep_count(greedy, 13, 6, 31, 13) == 4
    assert keep_count(whole.model_copy(update={"start": None}), 13, 6, 4096, 13) == 4096


@given(st.data())
def test_more_alpha_never_keeps_more(data: st.DataObject) -> None:
    low, middle, high = sorted(data.draw(st.lists(share, min_size=3, max_size=3)))
    least = data.draw(st.floats(0, 1, exclude_min=True))
    scale, tokens = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 5000))
    scores = (data.draw(share),)

    def kept(alpha_min: float, alpha_max: float) -> int:
        given = Thresholds(alpha_min=alpha_min, alpha_max=alpha_max, start=2, scores=scores, min_keep=least)
        return keep_count(given, scale, 0, tokens, 13)

    assert kept(low, middle) >= kept(low, high) >= kept(middle, high)
    assert least * tokens - 1e-6 <= kept(middle, high) <= tokens
    assert isinstance(kept(low, high), int)


def test_plans_from_before_keep_their_digests() -> None:
    """Literals from before `Thresholds` had its later fields."""
    plan = infinity_plan()
    assert plan.digest == "sha256:2f4b903d4864c6c4989dc47f829e133bb9007f67aa818c7260f372a7bf46ae8e"
    published = plan.replace(thresholds=PUBLISHED)
    assert published.digest == "sha256:64f6a82c409754ba79d8547998b986f211691b06583e16375f024e426f294535"
    shipped = load_plan(Path(__file__).parents[2] / "benchmarks" / "plans" / "landscape-swept.json")
    assert shipped.digest == "sha256:ddaa5c39c1a0472ce06625a0fa8a2a1d1b97de94e9402f780495126ab1b93b50"
    for old in (plan, published, shipped):
        assert set(json.loads(old.dumps())["thresholds"]) == {"tau", "beta", "alpha_min", "alpha_max"}


def test_round_trip() -> None:
    plan = infinity_plan(thresholds=WHOLE)
    written = json.loads(plan.dumps())["thresholds"]
    assert written == WHOLE
    assert list(written) == list(Thresholds.model_fields)
    again = Plan.loads(plan.dumps(), strict_digest=True)
    assert again == plan
    assert plan.replace(thresholds=plan.thresholds) == plan
    assert plan.digest != infinity_plan().digest
    changed = plan.replace(thresholds={**WHOLE, "start": 10})
    assert changed.digest != plan.digest


def test_schema_has_every_field() -> None:
    schema = json_schema()["$defs"]["Thresholds"]
    assert list(schema["properties"]) == list(WHOLE)
    assert "required" not in schema
    assert schema["additionalProperties"] is False


def test_the_table_tells_them() -> None:
    text = str(infinity_plan(thresholds=WHOLE))
    assert (
        "entropy thresholds, which this plan does not prune by: tau 0.4, beta 0.01, alpha_min 0.1, alpha_max 0.5, "
        "min_keep 0.1\n"
        "  from scale 9 (24x24) on, detail layers 5-7 by entropy at scale 6 (12x12), 2212 to 2376 tokens kept at the "
        "last scale\n"
    ) in text
    assert "entropy thresholds, which this plan does not prune by: tau 0.4\n" in str(
        infinity_plan(thresholds={"tau": 0.4})
    )
    assert "thresholds" not in str(infinity_plan())
    assert ", no detail layer by" in str(infinity_plan(thresholds={**WHOLE, "scores": [0.0] * 10}))


def test_diff() -> None:
    before = infinity_plan(thresholds=PUBLISHED)
    after = infinity_plan(thresholds=WHOLE)
    other = infinity_plan(thresholds={**WHOLE, "scores": [0.0] * 3 + [0.8] * 3 + [0.9, 0.9, 0.0, 0.7]})
    assert str(diff(before, after)) == (
        "thresholds.beta: 1.5 -> 0.01\n"
        "thresholds.start: null -> 9\n"
        "thresholds.representative: null -> 6\n"
        "thresholds.scores: [] -> [0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.9, 0.9, 0.0, 0.0]\n"
        "thresholds.min_keep: null -> 0.1"
    )
    assert str(diff(after, other)) == (
        "thresholds.scores, layers 3-4: 0.0 -> 0.8\nthresholds.scores, layer 9: 0.0 -> 0.7"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tau": 1.5}, "thresholds.tau: must be between 0 and 1, got 1.5"),
        ({"beta": 0}, "thresholds.beta: must be above 0 and finite, got 0.0"),
        ({"alpha_max": 1.1}, "thresholds.alpha_max: must be between 0 and 1, got 1.1"),
        ({"alpha_min": 0.6}, "thresholds.alpha_min: must be at most alpha_max, 0.5, got 0.6"),
        ({"min_keep": 0}, "thresholds.min_keep: must be above 0 and at most 1, got 0.0"),
        ({"start": 1}, "thresholds.start: must be a scale between 2 and 13, got 1"),
        ({"start": 14}, "thresholds.start: must be a scale between 2 and 13, got 14"),
        ({"representative": 0}, "thresholds.representative: must be a scale between 1 and 13, got 0"),
        ({"scores": [0.5] * 9 + [1.5]}, "thresholds.scores, layer 9: must be between 0 and 1, got 1.5"),
        ({"scores": [0.5]}, "thresholds.scores: must have 10 entries, one per layer, got 1; give one score"),
        ({"start": "9"}, 'thresholds.start: must be a valid integer, got "9"'),
        ({"strat": 9}, "thresholds.strat: unknown field; did you mean 'start'? valid: tau, beta"),
        (
            {"tau": None, "scores": []},
            "thresholds: must be whole where start, representative, min_keep are given, got no tau, scores; add tau, "
            "scores, or take start, representative, min_keep out",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        infinity_plan(thresholds={**WHOLE, **changes})
    (problem,) = caught.value.problems
    assert problem.startswith(says)
