"""A choice per image among static plans (SkipVAR): what decides, and the plans that it decides between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from sparvar.errors import PlanError, message
from sparvar.scale_plans.records import Record

if TYPE_CHECKING:
    from sparvar.scale_plans.data import PlanFields

FEATURES = ("edges", "fine")
"""What an image is judged by, at the decision: how much its edges changed in the scale (mean absolute difference of
Sobel magnitudes), and the share of its FFT amplitude at high frequencies."""


class Logistic(Record):
    """A logistic model: P = 1 / (1 + exp(-(bias + sum of weights * features)))."""

    bias: float
    weights: tuple[float, ...]
    """Of `FEATURES`, in their own units."""

    def probability(self, features: Sequence[float]) -> float:
        """P of "yes" for the features of one image."""
        score = self.bias + sum(weight * value for weight, value in zip(self.weights, features, strict=True))
        return 1 / (1 + math.exp(-min(max(score, -700.0), 700.0)))


class Adapt(Record):
    """Every generation looks at its images once and goes on with one of a few plans (SkipVAR, arXiv 2506.08908).

    An image may do without the last n scales where the models of 1 to n all say so with at least ``least``; the same
    for unconditional rows, which count only where no scale is skipped. A batch does what its most careful image does.
    """

    fingerprint: str
    """Of the model whose images the logistic models were fitted on; no other model takes them."""
    scale: int
    """The images are decoded before and after this scale, and the rest of the plan is chosen."""
    skip: tuple[Logistic, ...] = ()
    """Entry n - 1: whether the last n scales need not be drawn."""
    conditional: tuple[Logistic, ...] = ()
    """Entry n - 1: whether the last n scales need no unconditional rows."""
    fill: Literal["copy", "delta"] = "copy"
    """What stands for unconditional rows, see `Guidance`."""
    least: float = 0.5
    """Probability from which on an image does without."""


def decide(adapt: Adapt, features: Sequence[Sequence[float]]) -> tuple[int, int]:
    """(last scales to skip, last scales without unconditional rows), one of them 0, for a batch.

    Args:
        adapt: what decides.
        features: of every image, see `FEATURES`.
    """
    skip = min(_may(adapt.skip, adapt.least, image) for image in features)
    return (skip, 0) if skip else (0, min(_may(adapt.conditional, adapt.least, image) for image in features))


def _may(models: Sequence[Logistic], least: float, image: Sequence[float]) -> int:
    count = 0
    while count < len(models) and models[count].probability(image) >= least:
        count += 1
    return count


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


def chosen_changes(plan: PlanFields, skip: int, conditional: int) -> dict[str, object]:
    """The fields that differ in the plan that a decision goes on with.

    Raises:
        PlanError: the plan does not adapt.
    """
    if plan.adapt is None:
        raise PlanError(message("adapt", "be given where a generation decides", "null"), plan.name)
    changes: dict[str, object] = {"adapt": None}
    if skip:
        drawn = plan.scales - skip
        changes |= {"name": f"{plan.name} (last {skip} skipped)", "skip": {"last": skip}}
        # What concerns scales that are not drawn goes with them.
        if plan.pruning is not None and all(scale > drawn for span in plan.pruning.spans for scale in span.keep):
            changes["pruning"] = None
        if plan.kv is not None:
            changes["kv"] = plan.kv.before(drawn)
    elif conditional:
        first = plan.scales - conditional + 1
        fill = plan.adapt.fill
        changes |= {
            "name": f"{plan.name} (conditional from {first})",
            "guidance": {"conditional_from": first, "fill": fill},
        }
    return changes


def graph_bound(plan: PlanFields) -> tuple[int, int]:
    """(static plans, graphs at most) of one batch size: a graph per scale, kind and number of rows."""
    kinds = [len({plan.kind(scale, layer) for layer in range(len(plan.layers))}) for scale in range(1, plan.scales + 1)]
    if plan.adapt is None:
        return 1, sum(kinds[: plan.drawn])
    halves = len(plan.adapt.conditional)
    return 1 + len(plan.adapt.skip) + halves, sum(kinds) + sum(kinds[len(kinds) - halves :])


__all__ = ["FEATURES", "Adapt", "Logistic", "adapt_problems", "chosen_changes", "decide", "graph_bound"]
