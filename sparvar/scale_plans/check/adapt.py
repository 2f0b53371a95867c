"""Contradictions in what a plan decides per image. See `plan_fields`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sparvar.errors import message
from sparvar.scale_plans.adapt import FEATURES
from sparvar.scale_plans.data import PlanFields


def adapt_problems(plan: PlanFields) -> Iterator[str]:
    """Contradictions of ``plan.adapt``."""
    adapt = plan.adapt
    if adapt is None:
        return
    if plan.skip is not None:
        yield message("adapt", "stand alone: it decides on skip", "a plan with skip", "take skip out")
    if plan.guidance is not None and adapt.conditional:
        must = "leave unconditional rows to the plan's guidance, or decide on them alone"
        yield message("adapt.conditional", must, "both", "take guidance out, or conditional")
    if not adapt.fingerprint:
        yield message("adapt.fingerprint", "name the model that it was fitted on", "nothing", "see fit_skip")
    if not adapt.skip and not adapt.conditional:
        yield message("adapt", "have models for skip or conditional", "none", "leave adapt out to adapt nothing")
    if not 0 < adapt.least <= 1:
        yield message("adapt.least", "be above 0 and at most 1", adapt.least)
    if not 2 <= adapt.scale < plan.scales:
        yield message("adapt.scale", f"be a scale between 2 and {plan.scales - 1}", adapt.scale)
        return
    left = plan.scales - adapt.scale
    for name, models in (("skip", adapt.skip), ("conditional", adapt.conditional)):
        if len(models) > left:
            must = f"decide on at most the {left} scales after {plan.label(adapt.scale)}"
            yield message(f"adapt.{name}", must, f"{len(models)} models", "decide earlier, or on fewer scales")
        for number, model in enumerate(models):
            if len(model.weights) != len(FEATURES):
                must = f"have {len(FEATURES)} weights, of {', '.join(FEATURES)}"
                yield message(f"adapt.{name}, model {number}", must, len(model.weights))
            if not all(math.isfinite(value) for value in (model.bias, *model.weights)):
                yield message(f"adapt.{name}, model {number}", "have finite numbers", "another")
    first = plan.scales - len(adapt.skip)
    if adapt.skip and plan.guidance is not None and plan.guidance.conditional_from > first:
        must = f"be a scale that is always drawn, at most {first}"
        remedy = "drop guidance earlier, or let adapt skip fewer scales"
        yield message("guidance.conditional_from", must, plan.guidance.conditional_from, remedy)
    if adapt.skip and plan.decision_scale is not None and "cs4a" in plan.layers and plan.decision_scale >= first:
        must = f"come before the last scale that is always drawn, {first}"
        yield message("decision_scale", must, plan.decision_scale, "decide earlier, or let adapt skip fewer scales")
