"""A plan carried to another schedule (resolution, aspect ratio) by rule.

Two scales correspond where their grids have the same size relative to the last one, the size of a grid being the
geometric mean of its sides. Relative sizes and not positions, because smaller images often have fewer scales: Infinity
draws 1M pixels in 13, the last three of 40, 48 and 64 cells, and 0.25M in 10, the last three of 20, 24 and 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from sparvar.scale_plans.data import CS4AScale, CSLAScale, Provenance, Thresholds
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.presets.kv_compression import transfer_kv
from sparvar.scale_plans.sets import PlanSet, Schedule, schedule_text
from sparvar.scale_plans.transfer.reductions import transfer_reductions

Correspondence = Callable[[int], int]
"""From a scale of the target to the scale of the source that stands for it."""


def transfer(
    plan: Plan, schedule: Sequence[Sequence[int]], *, prefix: int | None = None, name: str | None = None
) -> Plan:
    """The plan for another schedule of the same model, by rule: nothing is measured at the new schedule.

    - Decision scale: the one nearest in relative size to the source's; not the last, after the sinks, at least 2
      where the schedule has three scales or more.
    - Scales after it take budget and window (cs4a), or windows (csla), of the corresponding scale after the source's
      decision; those up to it correspond to scales up to the source's. Windows keep their sides in cells and belong to
      the corresponding historical scales; a side is cut to what covers its grid. A scale whose counterpart is dense is.
    - Sinks: the most leading scales that hold, with the prefix, at most the share of the last scale's keys that the
      source's sinks hold. None where the prefix alone holds more; the prefix itself is always a sink.
    - Tile: the same, cut to the last grid. It is not turned with the picture: kernels gather the same columns for 128
      queries whichever way these lie, and rows of 16 lie together in memory in both.
    - KV compression keeps, after the scale that corresponds, the same share of all keys up to it.
    - Layers, flags and model stay. Layers that no scale of the schedule makes sparse become dense.

    At its own schedule a plan is itself, with its measurements, under ``name`` where one is given.

    Args:
        plan: the plan to carry, without contradictions.
        schedule: (h, w) of every scale of the target, coarse to fine.
        prefix: tokens in the KV cache before scale 1; the source's if None.
        name: of the new plan; the source's with the last grid if None.

    Raises:
        PlanError: the plan or the schedule contradicts itself.
    """
    plan.require()
    grids = tuple((int(height), int(width)) for height, width in schedule)
    before = plan.prefix if prefix is None else prefix
    if (grids, before) == (plan.schedule, plan.prefix):
        return plan if name is None else plan.replace(name=name)
    bare = plan.replace(
        schedule=grids,
        prefix=before,
        tile=(1, 1),
        column_sum_stride=1,
        sink_scales=0,
        decision_scale=None,
        layers=("dense",) * len(plan.layers),
        cs4a={},
        csla={},
        kv=None,
        thresholds=Thresholds(),
        adapt=None,
        pruning=None,
        guidance=None,
    )
    tile = (min(plan.tile[0], grids[-1][0]), min(plan.tile[1], grids[-1][1]))
    sinks = _sinks(plan, bare)
    decision = _decision(plan, bare, sinks)
    source = _correspondence(plan, bare, decision)
    after = range(1 if decision is None else decision + 1, bare.scales + 1)
    cs4a = {scale: _cs4a(plan.cs4a[source(scale)], bare, scale) for scale in after if source(scale) in plan.cs4a}
    if decision != plan.decision_scale and decision is None:  # a schedule of one scale has nothing to decide for
        cs4a = {}
    csla = {}
    for scale in range(1, bare.scales + 1):
        windows = _windows(plan, bare, scale, source)
        if windows or (source(scale) in plan.csla and (sinks or before)):
            csla[scale] = CSLAScale(windows=windows)
    sparse = {"cs4a": bool(cs4a) and decision is not None, "csla": bool(csla), "dense": True}
    layers = tuple(policy if sparse[policy] else "dense" for policy in plan.layers)
    note = f"carried over from {plan.name} ({plan.digest}) at {schedule_text(plan.schedule)} by rule, not calibrated"
    if layers != plan.layers:
        note += "; layers became dense, since no scale of this schedule stands for one that was sparse"
    if plan.adapt is not None:
        note += "; the choice by the image was fitted at another schedule and is left out"
    kv = transfer_kv(plan, bare.replace(sink_scales=sinks), source)
    height, width = grids[-1]
    columns = bare.replace(
        tile=tile,
        column_sum_stride=min(plan.column_sum_stride, max(tile)),
        sink_scales=sinks,
        decision_scale=decision,
        layers=layers,
        cs4a=cs4a,
        csla=csla,
    )
    return columns.replace(
        name=f"{plan.name}@{height}x{width}" if name is None else name,
        **transfer_reductions(plan, columns, source),
        kv=kv,
        thresholds=_thresholds(plan, bare),
        measured={},
        provenance=Provenance(note=note),
    )


def transferable(plan: Plan) -> PlanSet:
    """A plan, and by rule (`transfer`) those of every other schedule that the model's call names.

    ``sparvar.compile(model, transferable(plan))``. Raises `PlanError` where the plan contradicts itself.
    """
    rule: Callable[[Schedule], Plan] = partial(transfer, plan)
    return PlanSet.of([plan], rule=rule)


def _size(plan: Plan, scale: int) -> float:
    """log2 of the geometric mean of a scale's sides over that of the last scale."""
    return 0.5 * math.log2(plan.tokens(scale) / plan.tokens(plan.scales))


def _nearest(size: float, among: Iterable[int], plan: Plan, from_end: int) -> int:
    """The scale of ``plan`` nearest in size; of equals the one nearest to being ``from_end`` before the last, then the
    finer one."""
    return min(
        among,
        key=lambda scale: (round(abs(_size(plan, scale) - size), 9), abs(plan.scales - scale - from_end), -scale),
    )


def _sinks(plan: Plan, bare: Plan) -> int:
    """Most leading scales within the source's share of keys; two scales at least stay for deciding and using it."""
    found, tokens = 0, bare.prefix
    for scale in range(1, bare.scales - 1):
        tokens += bare.tokens(scale)
        # In whole numbers: the same share must not be lost to rounding.
        if tokens * plan.keys(plan.scales) > plan.sinks * bare.keys(bare.scales):
            break
        found = scale
    return found


def _decision(plan: Plan, bare: Plan, sinks: int) -> int | None:
    if plan.decision_scale is None or bare.scales == 1:
        return None
    last = bare.scales - 1
    among = range(min(max(2, sinks + 1), last), last + 1)
    size = _size(plan, plan.decision_scale)
    return _nearest(size, among, bare, plan.scales - plan.decision_scale)


def _correspondence(plan: Plan, bare: Plan, decision: int | None) -> Correspondence:
    """The decision scale splits both schedules: what follows it corresponds to what follows the source's."""

    def source(scale: int) -> int:
        among = range(1, plan.scales + 1)
        if plan.decision_scale is not None and decision is not None:
            among = among[: plan.decision_scale] if scale <= decision else among[plan.decision_scale :]
        return _nearest(_size(bare, scale), among, plan, bare.scales - scale)

    return source


def _fit(bare: Plan, scale: int, window: int) -> int:
    return min(window, 2 * max(bare.grid(scale)) - 1)


def _cs4a(entry: CS4AScale, bare: Plan, scale: int) -> CS4AScale:
    return CS4AScale(budget=entry.budget, window=_fit(bare, scale, entry.window))


def _windows(plan: Plan, bare: Plan, scale: int, source: Correspondence) -> Mapping[int, int]:
    """csla windows of a target scale by historical scale; none where its counterpart has none."""
    entry = plan.csla.get(source(scale))
    if entry is None:
        return {}
    sides = {past: entry.windows.get(source(past), 0) for past in range(1, scale + 1)}
    return {past: _fit(bare, past, side) for past, side in sides.items() if side}


def _thresholds(plan: Plan, bare: Plan) -> Thresholds:
    """Pruning's parameters; the scales they name go to their nearest counterparts. None where there is one scale."""
    if plan.thresholds.start is None or plan.thresholds.representative is None:
        return plan.thresholds
    if bare.scales < 2:
        return Thresholds()

    def near(scale: int, least: int) -> int:
        return _nearest(_size(plan, scale), range(least, bare.scales + 1), bare, plan.scales - scale)

    changed = {"start": near(plan.thresholds.start, 2), "representative": near(plan.thresholds.representative, 1)}
    return plan.thresholds.model_copy(update=changed)
