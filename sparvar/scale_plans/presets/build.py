"""Plans from rules, before any calibration."""

from __future__ import annotations

from collections.abc import Sequence

from sparvar.scale_plans.data import CS4AScale, CSLAScale, ModelInfo, Provenance
from sparvar.scale_plans.plan import Plan

# What SparVAR publishes for Infinity at 1M pixels (methods, CS4A and CSLA).
SINK_SCALES = 5
BUDGET = 0.2
DENSE_FIRST_LAYERS = 2
CS4A_SHARE = 0.6
CS4A_WINDOWS = (9, 7)  # at the second last and last scale
CSLA_WINDOWS = (1, 1, 3, 5, 7)  # at the last five scales
SPARSE_SCALES = 2  # scales after the decision scale, which is the third last


def dense_plan(
    schedule: Sequence[Sequence[int]],
    model: ModelInfo,
    *,
    prefix: int = 0,
    tile: Sequence[int] = (8, 16),
    name: str = "dense",
) -> Plan:
    """A plan in which every layer is dense at every scale: the baseline, and a start for edits.

    Args:
        schedule: (h, w) of every scale.
        model: the model that the plan is for.
        prefix: tokens in the KV cache before scale 1.
        tile: (h, w) of a query tile.
        name: of the plan.

    Raises:
        PlanError: the plan contradicts itself.
    """
    height, width = tile
    return Plan(
        name=name,
        model=model,
        schedule=tuple((int(h), int(w)) for h, w in schedule),
        prefix=prefix,
        tile=(height, width),
        sink_scales=_sink_scales(len(schedule)),
        layers=("dense",) * len(model.sites),
        provenance=Provenance(note="all dense"),
    ).require()


def default_plan(
    schedule: Sequence[Sequence[int]],
    model: ModelInfo,
    *,
    prefix: int = 0,
    tile: Sequence[int] = (8, 16),
    name: str = "default",
    budget: float = BUDGET,
    cs4a_share: float = CS4A_SHARE,
    skipped: int = 0,
) -> Plan:
    """A hybrid plan by the rules of SparVAR, not calibrated: it says so in its provenance.

    The third last scale decides and the last two are sparse with ``budget`` of their keys and windows of 9 and 7; the
    first two layers stay dense, of the others the first ``cs4a_share`` are cs4a and the rest csla, with windows
    1, 1, 3, 5, 7 at the last five scales. A schedule of one scale stays dense; a window never exceeds its grid. With
    ``skipped`` that many of the last scales are not drawn, and those before them take their place in the rules.

    Args:
        schedule, model, prefix, tile, name: see `dense_plan`.
        budget: share of a sparse scale's keys that cs4a keeps.
        cs4a_share: share of the layers after the first two that are cs4a.
        skipped: last scales that are not drawn.

    Raises:
        PlanError: the plan contradicts itself.
    """
    plan = dense_plan(schedule, model, prefix=prefix, tile=tile, name=name)
    if skipped:
        plan = plan.replace(skip={"last": skipped}, sink_scales=_sink_scales(plan.scales - skipped))
    scales = plan.drawn
    note = "made by rule, not calibrated: measure it before you trust it"
    if scales == 1:
        return plan.replace(provenance=Provenance(note=f"one scale only, all dense; {note}"))
    decision = max(1, scales - SPARSE_SCALES)
    targets = range(decision + 1, scales + 1)
    dense_layers = min(DENSE_FIRST_LAYERS, len(model.sites) - 1)
    cs4a_layers = round((len(model.sites) - dense_layers) * cs4a_share)
    csla_layers = len(model.sites) - dense_layers - cs4a_layers
    local = {scale: _fit(plan, scale, side) for scale, side in _last(scales, CSLA_WINDOWS)}
    around = dict(_last(scales, CS4A_WINDOWS))
    return plan.replace(
        layers=("dense",) * dense_layers + ("cs4a",) * cs4a_layers + ("csla",) * csla_layers,
        decision_scale=decision if cs4a_layers else None,
        cs4a={s: CS4AScale(budget=budget, window=_fit(plan, s, around[s])) for s in targets} if cs4a_layers else {},
        csla={target: CSLAScale(windows={s: side for s, side in local.items() if s <= target}) for target in targets}
        if csla_layers
        else {},
        provenance=Provenance(note=note),
    )


def default_for(base: Plan) -> Plan:
    """`default_plan` of the model, schedule and skipped scales of another plan."""
    model = base.model.model_copy(update={"family": ""})
    skipped = base.scales - base.drawn
    return default_plan(base.schedule, model, prefix=base.prefix, tile=base.tile, skipped=skipped)


def _sink_scales(scales: int) -> int:
    # Sinks reach no further than the scale before the decision scale.
    return min(SINK_SCALES, max(0, scales - SPARSE_SCALES - 1))


def _last(scales: int, values: Sequence[int]) -> list[tuple[int, int]]:
    """(scale, value) for the last scales, fewer where the schedule is short."""
    first = scales - len(values) + 1
    return [(scale, value) for scale, value in enumerate(values, start=first) if scale >= 1]


def _fit(plan: Plan, scale: int, window: int) -> int:
    return min(window, 2 * max(plan.grid(scale)) - 1)
