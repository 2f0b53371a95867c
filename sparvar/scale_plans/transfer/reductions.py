"""Tokens and rows that a plan leaves out, carried to another schedule: see `transfer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparvar.scale_plans.data import PlanFields


def transfer_reductions(plan: PlanFields, bare: PlanFields, source: Callable[[int], int]) -> dict[str, Any]:
    """The fields ``pruning`` and ``guidance`` at the schedule of ``bare``.

    Scales take the shares of the scales they correspond to. The source of pruning is the latest scale that corresponds
    to the plan's source or an earlier one; scales up to it, and up to the decision scale of cs4a layers, compute all
    their tokens.

    Args:
        plan: the plan that is carried.
        bare: a plan of the other schedule, with its decision scale and layers.
        source: scale of ``bare`` to the scale of ``plan`` it corresponds to.
    """
    return {"pruning": _pruning(plan, bare, source), "guidance": _guidance(plan, bare, source)}


def _pruning(plan: PlanFields, bare: PlanFields, source: Callable[[int], int]) -> dict[str, Any] | None:
    pruning = plan.pruning
    if pruning is None or bare.scales < 2:
        return None
    earlier = [scale for scale in range(1, bare.scales) if source(scale) <= pruning.source]
    begin = max(earlier, default=1)
    spans = []
    for span in pruning.spans:
        mapped = "cs4a" in bare.layers[span.first : span.last + 1] and bare.decision_scale is not None
        first = max(begin, bare.decision_scale or 0) if mapped else begin
        keep = {
            scale: span.keep[source(scale)]
            for scale in range(first + 1, bare.scales + 1)
            if source(scale) in span.keep and round(span.keep[source(scale)] * bare.tokens(scale)) >= 1
        }
        if keep:
            spans.append({"first": span.first, "last": span.last, "keep": keep})
    if not spans:
        return None
    return {"score": pruning.score, "fill": pruning.fill, "source": begin, "spans": spans}


def _guidance(plan: PlanFields, bare: PlanFields, source: Callable[[int], int]) -> dict[str, Any] | None:
    guidance = plan.guidance
    if guidance is None:
        return None
    late = [scale for scale in range(2, bare.scales + 1) if source(scale) >= guidance.conditional_from]
    return {"conditional_from": min(late), "fill": guidance.fill} if late else None
