"""Passes together: random legal plans, run as a user runs them, against a slow reference with masks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

import sparvar
from sparvar.errors import PlanError
from sparvar.scale_plans import INDEX_MAPS, Plan
from sparvar.scale_plans.kv_cache import KINDS
from tests.plan_reference import generate as slow
from tests.tiny import DEPTH, SIDES, tiny_model, tiny_plan

SCALES = len(SIDES)
MODEL = tiny_model()
CLOSE = 1e-5
"""A decision closer than this may fall either way in single precision."""


def windows(scale: int) -> st.SearchStrategy[int]:
    return st.sampled_from([1, 3, 5, 2 * SIDES[scale - 1] - 1]).filter(lambda side: side < 2 * SIDES[scale - 1])


@st.composite
def attention(draw: st.DrawFn) -> dict[str, Any]:
    """Policies of the layers, and what they need."""
    layers = draw(st.lists(st.sampled_from(["dense", "cs4a", "csla"]), min_size=DEPTH, max_size=DEPTH))
    decision = draw(st.integers(2, SCALES - 1))
    later = draw(st.sets(st.integers(decision + 1, SCALES), min_size=1))
    csla = draw(st.sets(st.integers(3, SCALES), min_size=1))
    budgets = st.sampled_from([0.1, 0.3, 0.6, 1.0])
    return {
        "layers": layers,
        "decision_scale": decision,
        "tile": draw(st.sampled_from([(2, 3), (4, 4), (8, 16)])),
        "sink_scales": draw(st.integers(1, 3)),
        "index_map": draw(st.sampled_from(INDEX_MAPS)),
        "output_correction": draw(st.booleans()),
        "cs4a": {
            scale: {"budget": draw(budgets), "window": draw(st.just(0) | windows(scale))} for scale in sorted(later)
        },
        "csla": {
            scale: {"windows": {each: draw(windows(each)) for each in range(max(1, scale - 2), scale + 1)}}
            for scale in sorted(csla)
        },
    }


@st.composite
def pruning(draw: st.DrawFn) -> dict[str, Any]:
    source = draw(st.integers(2, SCALES - 1))
    borders = sorted(draw(st.sets(st.integers(0, DEPTH), min_size=2)))
    shares = st.sampled_from([0.05, 0.3, 0.5, 0.8])
    spans = [
        {
            "first": first,
            "last": last - 1,
            "keep": {
                scale: draw(shares) for scale in sorted(draw(st.sets(st.integers(source + 1, SCALES), min_size=1)))
            },
        }
        for first, last in itertools.pairwise(borders)
        if draw(st.booleans()) or len(borders) == 2
    ]
    score = draw(st.sampled_from(["pivot", "entropy", "change"]))
    fill = draw(st.sampled_from(["input", "output", "previous", "delta", "anchor"]))
    return {"score": score, "fill": fill, "source": source, "spans": spans}


@st.composite
def compression(draw: st.DrawFn, held: set[int]) -> dict[str, Any]:
    """Of all layers but those ``held``, which pruned spans have."""
    method = draw(st.sampled_from(sorted(KINDS)))
    kinds = [["whole"] if layer in held else [draw(st.sampled_from(KINDS[method]))] for layer in range(DEPTH)]
    keep, most = {}, 0
    for scale in sorted(draw(st.sets(st.integers(3, SCALES - 1), min_size=1))):
        most = sum(side**2 for side in SIDES[:scale]) if not most else most + SIDES[scale - 1] ** 2
        keep[scale] = {kind: draw(st.integers(14, most)) for kind in KINDS[method]}
        most = min(keep[scale].values())
    stored = draw(st.sampled_from(["same", "bfloat16"]))
    return {"method": method, "kinds": kinds, "keep": keep, "pool": draw(st.sampled_from([1, 3])), "store": stored}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Legal plans in which at least two kinds of passes meet."""
    changes = draw(attention())
    if draw(st.booleans()):
        changes["pruning"] = draw(pruning())
    if draw(st.booleans()):
        fill = draw(st.sampled_from(["copy", "delta"]))
        changes["guidance"] = {"conditional_from": draw(st.integers(3, SCALES)), "fill": fill}
    if draw(st.booleans()):
        changes["skip"] = {"last": 1}
    spans = changes.get("pruning", {}).get("spans", [])
    held = {layer for span in spans for layer in range(span["first"], span["last"] + 1)}
    if len(held) < DEPTH and draw(st.booleans()):
        changes["kv"] = draw(compression(held))
    try:
        plan = tiny_plan(MODEL, **changes)
    except PlanError:
        reject()
    met = [set(plan.layers) - {"dense"}, plan.pruning, plan.guidance, plan.skip, plan.kv]
    assume(sum(bool(part) for part in met) >= 2)
    return plan


DRAWN = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def check(plan: Plan) -> None:
    exact, margin = slow(MODEL, "mountain", 50, plan)
    assume(margin > CLOSE)
    sparvar.compile(MODEL, plan, inner="eager")
    try:
        image = MODEL.generate(["mountain"], seed=50)
    finally:
        sparvar.detach(MODEL)
    torch.testing.assert_close(image, exact, rtol=1e-3, atol=1e-4)


@given(plans())
@settings(DRAWN, max_examples=5)
def test_a_few_random_legal_plans(plan: Plan) -> None:
    check(plan)


@pytest.mark.slow
@given(plans())
@settings(DRAWN, max_examples=30)
def test_random_legal_plans(plan: Plan) -> None:
    check(plan)


@pytest.mark.parametrize("policy", ["cs4a", "csla", "dense"])
def test_the_reference_itself_is_the_model(policy: str) -> None:
    """With every key in every list the masks leave nothing out."""
    whole = 2 * SIDES[-1] - 1
    changes: dict[str, Any] = {
        "layers": [policy] * DEPTH,
        "sink_scales": SCALES - 1,
        "cs4a": {SCALES: {"budget": 1.0, "window": whole}},
        "csla": {SCALES: {"windows": {SCALES: whole}}},
    }
    exact, _ = slow(MODEL, "mountain", 50, tiny_plan(MODEL, **changes))
    torch.testing.assert_close(exact, MODEL.generate(["mountain"], seed=50), rtol=1e-4, atol=1e-5)
