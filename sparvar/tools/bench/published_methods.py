"""The published methods that `sparvar bench methods` compares, each as a plan for the model at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparvar.scale_plans import (
    Plan,
    Thresholds,
    conditional,
    default_for,
    fastvar,
    hack,
    kept_tokens,
    local,
    scalekv,
    sparsevar,
    toprovar,
)

KV_SHARE = 8
"""Whole caches over what methods that compress them hold between scales."""
COMPRESSED = tuple(f"{name}, KV / {KV_SHARE}" for name in ("ScaleKV", "HACK", "sinks and local"))
"""Names of those methods."""
SKIPPED = 2
"""Last scales that are not drawn where methods skip, as FastVAR and others publish it for Infinity."""
SKIPPING = ", skipping"
"""What names of methods with skipped scales end in."""


@dataclass(frozen=True)
class Method:
    """One row of the table: its name, where it comes from, and its plan."""

    name: str
    source: str
    plan: Plan


def published(base: Plan, skipping: bool) -> list[Method]:
    """Methods alone, as their papers have them; with ``skipping`` also each with the last scales not drawn.

    Args:
        base: the model's all-dense plan.
        skipping: see above. The last drawn scale then takes the place of the last in every rule, the decision scale's
            included.
    """
    found = _alone(base)
    if skipping:
        found += [
            Method(f"skip last {count}", "SkipVAR", base.replace(name=f"skip-{count}", skip={"last": count}))
            for count in range(1, SKIPPED + 1)
        ]
        found += [_skipping(method) for method in _alone(shortened(base))]
    return found


def shortened(base: Plan) -> Plan:
    """The plan with the last `SKIPPED` scales skipped."""
    return base.replace(name=f"skip-{SKIPPED}", skip={"last": SKIPPED})


def _skipping(method: Method) -> Method:
    return replace(method, name=f"{method.name}{SKIPPING}", plan=method.plan.replace(name=f"{method.plan.name}-skip"))


def _alone(base: Plan) -> list[Method]:
    """Every method, at the last scales that ``base`` draws."""
    sparse = default_for(base)
    last = base.drawn
    local = sparse.replace(
        layers=["csla"] * len(base.layers),
        decision_scale=None,
        cs4a={},
        csla={scale: {"windows": _windows(base, scale)} for scale in (last - 1, last)},
    )
    # The paper's setting: pruning from about half of the last side on, every layer but the first a detail layer. One
    # layer alone stands for the others.
    scores = (0.0, *(1.0 for _ in base.layers[1:])) if len(base.layers) > 1 else (1.0,)
    thresholds = Thresholds(
        tau=0.4,
        beta=1.0,
        alpha_min=0.2,
        alpha_max=0.8,
        start=last - 2,
        representative=min(6, last - 2),
        scores=scores,
        min_keep=0.1,
    )
    short = base.skip is not None
    return [
        Method("SparVAR", "SparVAR, CS4A and CSLA 60:40", sparse),
        Method("CSLA alone", "SparVAR, supplement B", local),
        Method("ToProVAR", "ToProVAR, fixed counts", toprovar(base, thresholds)),
        Method("FastVAR", f"FastVAR, {'as published' if short else 'without skipping'}", fastvar(base, skipping=short)),
        Method("SparseVAR", "SparseVAR, anchors", sparsevar(base)),
        Method("random tokens", "baseline", kept_tokens(base, "random", "output", last - 2, (0.5, 0.25))),
        Method("ToMe", "baseline", kept_tokens(base, "tome", "merge", last - 2, (0.5, 0.26))),
        Method("PiToMe", "baseline", kept_tokens(base, "pitome", "merge", last - 2, (0.5, 0.26))),
        Method("conditional last 1", "SkipVAR", conditional(base, 1)),
        Method("conditional last 3", "SkipVAR", conditional(base, 3)),
    ]


def _windows(base: Plan, scale: int) -> dict[int, int]:
    """CSLA's windows 1, 1, 3, 5, 7 at the five last drawn scales, as far as a scale sees them (SparVAR, B)."""
    sides = zip(range(base.drawn - 4, base.drawn + 1), (1, 1, 3, 5, 7), strict=True)
    return {at: min(side, 2 * max(base.grid(at)) - 1) for at, side in sides if 1 <= at <= scale}


def compressed(
    base: Plan, selectivity: Sequence[Mapping[int, float]], variance: Sequence[Sequence[float]], skipping: bool
) -> list[Method]:
    """Methods that hold an eighth of the KV cache; with ``skipping`` also of the cache of a shortened generation.

    Args:
        base: the model's all-dense plan.
        selectivity: of its layers, as `scalekv` wants it.
        variance: of its heads, as `hack` wants it.
        skipping: see above.
    """
    found = _compressed(base, selectivity, variance)
    if skipping:
        short = shortened(base)
        there = [{scale: value for scale, value in layer.items() if scale <= short.drawn} for layer in selectivity]
        found += [_skipping(method) for method in _compressed(short, there, variance)]
    return found


def _compressed(
    base: Plan, selectivity: Sequence[Mapping[int, float]], variance: Sequence[Sequence[float]]
) -> list[Method]:
    budget = base.keys(base.drawn) // KV_SHARE
    # Sinks always stay: half of the budget at most, which is what ScaleKV's refiners go down to.
    sinks = max(scale for scale in range(base.sink_scales + 1) if base.replace(sink_scales=scale).sinks <= budget // 2)
    base = base.replace(sink_scales=sinks)
    records = (scalekv(base, selectivity, budget), hack(base, variance, budget), local(base, budget))
    sources = ("ScaleKV", "HACK", "SparVAR, table 2")
    return [
        Method(name, source, base.replace(name=f"{record.method}-{KV_SHARE}", kv=record))
        for name, source, record in zip(COMPRESSED, sources, records, strict=True)
    ]
