"""A plan as a table to read: one row per scale, then the layers."""

from __future__ import annotations

from sparvar.scale_plans.adapt import Adapt
from sparvar.scale_plans.check.plan_fields import contradictions, printable, ranges
from sparvar.scale_plans.data import POLICIES, PlanFields
from sparvar.scale_plans.geometry import kept_share
from sparvar.scale_plans.presets.kv_compression import kv_lines
from sparvar.scale_plans.static_plans import graph_bound
from sparvar.scale_plans.thresholds import keep_count
from sparvar.scale_plans.work import attention_share


def render(plan: PlanFields, digest: str) -> str:
    """Readable text of several lines. A plan with contradictions shows them instead of numbers that mean nothing."""
    provenance, model = plan.provenance, plan.model
    lines = [
        f"plan {printable(plan.name)}  {digest[:19]}  {'calibrated' if provenance.calibrated else 'not calibrated'}",
        f"model {printable(model.family or 'not named')}: {len(model.sites)} sites, "
        f"{model.heads} heads of {model.head_dim}, {model.dtype}",
    ]
    problems = contradictions(plan)
    if problems:
        return "\n".join([*lines, "it contradicts itself:", *(f"  {problem}" for problem in problems)])
    lines.append(
        f"tile {plan.tile[0]}x{plan.tile[1]}, index map {plan.index_map}, "
        f"output correction {'on' if plan.output_correction else 'off'}, column sums from every "
        f"{'query' if plan.column_sum_stride == 1 else f'{plan.column_sum_stride} queries in both axes'}"
    )
    lines.append(f"sinks {plan.sinks}: {_sinks(plan)}")
    lines += ["", *_scale_rows(plan), ""]
    for policy in POLICIES:
        layers = [number for number, value in enumerate(plan.layers) if value == policy]
        if layers:
            lines.append(f"{policy} layers: {ranges(layers)}")
    lines += _reductions(plan)
    lines += kv_lines(plan)
    lines += _thresholds(plan)
    lines.append(f"attention kept: {100 * attention_share(plan):.1f} % of dense multiply-adds (estimate)")
    if plan.measured:
        lines.append("measured: " + ", ".join(f"{printable(name)} {value:g}" for name, value in plan.measured.items()))
    origin = {name: getattr(provenance, name) for name in ("created", "tool", "torch", "device")}
    if any(origin.values()):
        lines.append("from: " + ", ".join(f"{name} {printable(value)}" for name, value in origin.items() if value))
    if provenance.note:
        lines.append(f"note: {printable(provenance.note)}")
    return "\n".join(lines)


def _reductions(plan: PlanFields) -> list[str]:
    lines = []
    if plan.pruning is not None:
        kept = plan.pruning
        fill = "the scale before" if kept.fill == "previous" else kept.fill
        lines.append(f"tokens: by {kept.score}, skipped ones from {fill}, source {plan.label(kept.source)}")
        for keep, spans in _alike(plan):
            shares = ", ".join(f"{100 * share:.3g} % at {scale}" for scale, share in keep)
            each = ", apart" if len(spans) > 1 else ""
            where = ranges([layer for span in spans for layer in range(span[0], span[1] + 1)])
            lines.append(f"  layers {where}{each} keep {shares}")
    if plan.guidance is not None:
        rows = "the same" if plan.guidance.fill == "copy" else "those less the difference of the scale before"
        where = plan.label(plan.guidance.conditional_from)
        lines.append(f"guidance: conditional rows alone from {where} on; unconditional ones are {rows}")
    if plan.adapt is not None:
        lines += _adapt(plan, plan.adapt)
    if plan.skip is not None:
        lines.append(f"skipped: the last {plan.skip.last} of {plan.scales} scales")
    return lines


def _adapt(plan: PlanFields, adapt: Adapt) -> list[str]:
    what = []
    for verb, count in (("be skipped", len(adapt.skip)), ("do without unconditional rows", len(adapt.conditional))):
        if count:
            scales = "scale" if count == 1 else f"1 to {count} scales"
            what.append(f"the last {scales} may {verb}")
    plans, graphs = graph_bound(plan)
    return [
        f"adaptive: after {plan.label(adapt.scale)}, by what the image looks like, {' or '.join(what)}",
        f"  {plans} plans, at most {graphs} graphs; two more decodes in every generation",
    ]


def _alike(plan: PlanFields) -> list[tuple[tuple[tuple[int, float], ...], list[tuple[int, int]]]]:
    """Spans by the shares that they keep, in order."""
    found: dict[tuple[tuple[int, float], ...], list[tuple[int, int]]] = {}
    for span in plan.pruning.spans if plan.pruning is not None else ():
        found.setdefault(tuple(span.keep.items()), []).append((span.first, span.last))
    return list(found.items())


def _thresholds(plan: PlanFields) -> list[str]:
    given = plan.thresholds
    numbers = [(name, getattr(given, name)) for name in ("tau", "beta", "alpha_min", "alpha_max", "min_keep")]
    shown = ", ".join(f"{name} {value:g}" for name, value in numbers if value is not None)
    if not shown:
        return []
    used = plan.pruning is not None and plan.pruning.score == "entropy"
    lines = [f"entropy thresholds{'' if used else ', which this plan does not prune by'}: {shown}"]
    if given.start is not None and given.representative is not None:
        layers = [layer for layer, score in enumerate(given.scores) if score > 0]
        counts = [keep_count(given, plan.scales, layer, plan.tokens(plan.scales), plan.scales) for layer in layers]
        kept = " to ".join(dict.fromkeys((str(min(counts)), str(max(counts))))) if counts else ""
        last = f", {kept} tokens kept at the last scale" if counts else ""
        which = f"detail layers {ranges(layers)}" if layers else "no detail layer"
        lines.append(
            f"  from {plan.label(given.start)} on, {which} by entropy at {plan.label(given.representative)}{last}"
        )
    return lines


def _sinks(plan: PlanFields) -> str:
    prefix = f"prefix of {plan.prefix}"
    if not plan.sink_scales:
        return prefix if plan.prefix else "none"
    scales = "scale 1" if plan.sink_scales == 1 else f"scales 1-{plan.sink_scales}"
    return f"{prefix}, {scales}" if plan.prefix else scales


def _scale_rows(plan: PlanFields) -> list[str]:
    rows = [f"{'scale':>5}  {'grid':>7}  {'tokens':>7}  {'keys':>7}  {'cs4a':>8}  {'csla':>8}  windows"]
    for scale in range(1, plan.scales + 1):
        height, width = plan.grid(scale)
        cells = f"{scale:>5}  {f'{height}x{width}':>7}  {plan.tokens(scale):>7}  {plan.keys(scale):>7}"
        row = f"{cells}  {_share(plan, scale, 'cs4a'):>8}  {_share(plan, scale, 'csla'):>8}  {_windows(plan, scale)}"
        rows.append(row.rstrip())
    return rows


def _share(plan: PlanFields, scale: int, policy: str) -> str:
    if policy not in plan.layers:
        return "-"
    share = kept_share(plan, scale, policy)
    if share is not None:
        return f"{100 * share:.1f} %"
    return "decide" if policy == "cs4a" and scale == plan.decision_scale else "dense"


def _windows(plan: PlanFields, scale: int) -> str:
    parts = []
    if "cs4a" in plan.layers and scale in plan.cs4a and plan.cs4a[scale].window:
        parts.append(f"cs4a {plan.cs4a[scale].window} at {scale}")
    if "csla" in plan.layers and scale in plan.csla:
        windows = ", ".join(f"{side} at {source}" for source, side in plan.csla[scale].windows.items())
        parts.append(f"csla {windows or 'sinks only'}")
    return "; ".join(parts)
