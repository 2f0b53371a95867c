"""Plans of published methods that leave out tokens or guidance, by the rules of their papers, for any schedule.

Each takes an all-dense plan, or one with sparse attention that is legal with it, and returns it with the method's
fields. Where a paper gives numbers for Infinity's 1:1 schedule, scales correspond by their grid relative to the last.
In a plan that skips scales, the last scale of a rule is the last that is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparvar.errors import PlanError, message
from sparvar.scale_plans.data import Thresholds
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.thresholds import keep_count

FASTVAR_RATIOS = {32 / 64: 0.4, 40 / 64: 0.5}
"""Pruned share by grid side relative to the last scale's, for Infinity; its last two scales are skipped."""
FASTVAR_FIRST = 3
"""Layers before it compute every token (layers 3 to 27 of 32 prune)."""
FASTVAR_LAST_SHARE = 28 / 32
SPARSEVAR_KEEP = 0.35
"""Share of tokens left at late scales, which the paper's threshold of 0.6 of the largest error gives on average."""


def fastvar(plan: Plan, skipping: bool = False) -> Plan:
    """FastVAR: pivotal tokens by distance from the mean, each layer choosing anew, skipped ones from the cache.

    With ``skipping`` the two last scales are not drawn and those before lose `FASTVAR_RATIOS`, as published for
    Infinity; without, the last two keep a half and a quarter of their tokens, as published for HART. Layers before
    `FASTVAR_FIRST` and the last eighth compute every token.
    """
    last = plan.drawn
    if skipping:
        drawn = plan.scales - 2
        keep = {scale: 1 - ratio for scale in range(2, drawn + 1) if (ratio := _ratio(plan, scale))}
        # The cache is the last scale before the first pruned one.
        source = min(keep, default=drawn) - 1
    else:
        keep, source = {last - 1: 0.5, last: 0.25}, last - 2
    layers = len(plan.layers)
    first, end = min(FASTVAR_FIRST, layers - 1), max(round(FASTVAR_LAST_SHARE * layers), 1)
    spans = [{"first": layer, "last": layer, "keep": keep} for layer in range(first, max(end, first + 1))]
    changes = {"pruning": {"score": "pivot", "fill": "output", "source": source, "spans": spans}}
    return plan.replace(name="fastvar", **changes, **({"skip": {"last": 2}} if skipping else {}))


def _ratio(plan: Plan, scale: int) -> float | None:
    """FastVAR's pruned share of a scale: that of the relative side that is nearest, within 8 %."""
    relative = (plan.tokens(scale) / plan.tokens(plan.scales)) ** 0.5
    near = min(FASTVAR_RATIOS, key=lambda side: abs(side - relative))
    return FASTVAR_RATIOS[near] if abs(near - relative) <= 0.08 * near else None


def sparsevar(plan: Plan, keep: float = SPARSEVAR_KEEP, residual: bool = True) -> Plan:
    """SparseVAR: at the last two scales tokens that one block changed little are left out.

    The block of the paper (the third of Infinity-2B, the sixteenth of HART) stands for all layers here: all of them are
    one span.

    Args:
        plan: what else runs; of three scales or more, as the third last one says what changed.
        keep: share of the tokens that the last two scales compute.
        residual: whether a scale of the model adds to those before (VAR, Infinity, HART). Then anchors stay, and what
            is left out gets the output of its most similar anchor. Otherwise (FlexVAR, the paper's appendix A) a scale
            predicts the whole token map anew, so that the scale before already has a value for every token: what is
            left out gets that, interpolated. Anchors are there to be copied from; as nothing is, none are forced to
            stay, and all tokens that are kept are those that changed most.

    Raises:
        PlanError: the plan has fewer than three scales, or the share leaves no token.
    """
    last = plan.drawn
    if last < 3:
        remedy = "two are pruned, by what changed at the one before them"
        raise PlanError(message("schedule", "have at least three scales that are drawn", last, remedy), plan.name)
    span = {"first": 0, "last": len(plan.layers) - 1, "keep": {last - 1: keep, last: keep}}
    fill = "anchor" if residual else "previous"
    pruning = {"score": "change", "fill": fill, "source": last - 2, "spans": [span]}
    return plan.replace(name="sparsevar", pruning=pruning)


def toprovar(plan: Plan, thresholds: Thresholds | None = None, fill: str = "delta") -> Plan:
    """ToProVAR: from scale D on, detail layers skip tokens of the highest entropy, a fixed number per layer and scale.

    Args:
        plan: what else runs.
        thresholds: with start, scores and alphas; the plan's own if None.
        fill: what stands for skipped tokens.

    Raises:
        PlanError: the thresholds are not calibrated, or nothing is to be pruned by them.
    """
    given = thresholds or plan.thresholds
    if given.start is None or not given.scores:
        remedy = "calibrate the plan, or give thresholds"
        raise PlanError(message("thresholds", "have a start scale and layers' scores", "none", remedy), plan.name)
    spans = []
    for layer in range(len(plan.layers)):
        keep = {
            scale: keep_count(given, scale, layer, plan.tokens(scale), plan.drawn) / plan.tokens(scale)
            for scale in range(given.start, plan.drawn + 1)
        }
        keep = {scale: share for scale, share in keep.items() if share < 1}
        if keep:
            spans.append({"first": layer, "last": layer, "keep": keep})
    if not spans:
        must, got = "prune at least one (layer, scale)", "none: no detail layer, or a start scale that is not drawn"
        raise PlanError(message("thresholds", must, got, "other thresholds"), plan.name)
    pruning = {"score": "entropy", "fill": fill, "source": given.start - 1, "spans": spans}
    return plan.replace(name="toprovar", pruning=pruning, thresholds=given)


def conditional(plan: Plan, last: int) -> Plan:
    """The last ``last`` drawn scales without unconditional rows (SkipVAR's second decision, always taken)."""
    return plan.replace(name=f"conditional-{last}", guidance={"conditional_from": plan.drawn + 1 - last})


def kept_tokens(plan: Plan, score: str, fill: str, source: int, shares: Sequence[float]) -> Plan:
    """All layers on the same tokens at the last drawn scales, ``shares`` of them, the last scale's share last."""
    first = plan.drawn - len(shares) + 1
    span = {"first": 0, "last": len(plan.layers) - 1, "keep": dict(enumerate(shares, start=first))}
    pruning = {"score": score, "fill": fill, "source": source, "spans": [span]}
    return plan.replace(name=f"{score}-{fill}", pruning=pruning)
