"""Contradictions in what a plan leaves out beside columns: pruning, guidance, skipped scales. See `check`."""

from __future__ import annotations

from collections.abc import Iterator

from sparvar.errors import message
from sparvar.scale_plans.data import PlanFields


def pruning_problems(plan: PlanFields) -> Iterator[str]:
    """Of ``plan.pruning``."""
    pruning = plan.pruning
    if pruning is None:
        return
    if not 1 <= pruning.source < plan.scales:
        yield message("pruning.source", f"be a scale between 1 and {plan.scales - 1}", pruning.source)
    if not pruning.spans:
        yield message("pruning.spans", "have at least one span", "none", "leave pruning out to prune nothing")
    end = -1
    for number, span in enumerate(pruning.spans):
        subject = f"pruning.spans, span {number}"
        if not 0 <= span.first <= span.last < len(plan.layers):
            must = f"have first <= last among the layers 0 to {len(plan.layers) - 1}"
            yield message(subject, must, f"{span.first} to {span.last}")
        if span.first <= end:
            yield message(subject, f"begin after layer {end}, the end of the span before it", f"layer {span.first}")
        end = max(end, span.last)
        if not span.keep:
            yield message(f"{subject}.keep", "name at least one scale", "none")
        for scale, share in span.keep.items():
            where = f"{subject}.keep.{scale}"
            if not 1 <= scale <= plan.scales:
                yield message(where, f"name a scale between 1 and {plan.scales}", f"scale {scale}")
                continue
            if not 0 < share <= 1:
                yield message(where, "be above 0 and at most 1", share)
            elif round(share * plan.tokens(scale)) < 1:
                remedy = "a region without any token has nothing to be restored from"
                yield message(where, f"keep at least one of the {plan.tokens(scale)} tokens", share, remedy)
            if scale <= pruning.source:
                yield message(where, f"come after the source scale, {pruning.source}", plan.label(scale))
            inside = plan.layers[span.first : span.last + 1] if 0 <= span.first <= span.last else ()
            if plan.decision_scale is not None and scale <= plan.decision_scale and "cs4a" in inside:
                must = (
                    f"come after the decision scale, {plan.decision_scale}, whose column sums need every query and key"
                )
                yield message(where, must, plan.label(scale), "decide earlier, or prune later")
    sparse = [
        layer
        for span in pruning.spans
        for layer in range(max(span.first, 0), min(span.last + 1, len(plan.layers)))
        if 1 <= pruning.source <= plan.scales and plan.attention_kind(pruning.source, layer) == "sparse"
    ]
    if pruning.score == "entropy" and sparse:
        must = (
            "be a scale at which the layers of its spans are dense or decide: sparse attention has no entropy to give"
        )
        yield message("pruning.source", must, f"{plan.label(pruning.source)}, where layer {sparse[0]} is sparse")


def guidance_problems(plan: PlanFields) -> Iterator[str]:
    """Of ``plan.guidance``."""
    guidance = plan.guidance
    if guidance is None:
        return
    if not 2 <= guidance.conditional_from <= plan.scales:
        must = f"be a scale between 2 and {plan.scales}"
        yield message("guidance.conditional_from", must, plan.label(guidance.conditional_from))


def skip_problems(plan: PlanFields) -> Iterator[str]:
    """Of ``plan.skip``, and of what it does to the rest."""
    skip = plan.skip
    if skip is None:
        return
    if not 1 <= skip.last < plan.scales:
        yield message(
            "skip.last", f"be between 1 and {plan.scales - 1}", skip.last, "leave skip out to draw all scales"
        )
        return
    drawn = plan.scales - skip.last
    if plan.decision_scale is not None and "cs4a" in plan.layers and plan.decision_scale >= drawn:
        must = f"come before the last scale that is drawn, {drawn}"
        yield message("decision_scale", must, plan.decision_scale, "decide earlier, or skip fewer scales")
    if plan.guidance is not None and plan.guidance.conditional_from > drawn:
        must = f"be a scale that is drawn, at most {drawn}"
        yield message("guidance.conditional_from", must, plan.guidance.conditional_from)
    if plan.pruning is not None and not any(scale <= drawn for span in plan.pruning.spans for scale in span.keep):
        yield message("pruning.spans", f"prune a scale that is drawn, at most {drawn}", "later ones alone")
