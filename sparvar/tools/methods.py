"""The published methods that `sparvar bench methods` compares, each as a plan for the model at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparvar.scale_plans import (
    Plan,
    Thresholds,
    conditional,
    default_plan,
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


@dataclass(frozen=True)
class Method:
    """One row of the table: its name, where it comes from, and its plan."""

    name: str
    source: str
    plan: Plan


def published(base: Plan, skipping: bool) -> list[Method]:
    """Methods alone, as their papers have them; with ``skipping`` also those that do not draw the last scales.

    Args:
        base: the model's all-dense plan.
        skipping: see above.
    """
    model = base.model
    sparse = default_plan(
        base.schedule,
        model.sites,
        heads=model.heads,
        head_dim=model.head_dim,
        fingerprint=model.fingerprint,
        prefix=base.prefix,
        tile=base.tile,
    )
    last = base.scales
    local = sparse.replace(
        layers=["csla"] * len(base.layers),
        decision_scale=None,
        cs4a={},
        csla={scale: {"windows": _windows(base, scale)} for scale in (last - 1, last)},
    )
    # The paper's setting: pruning from about half of the last side on, every layer but the first a detail layer.
    scores = (0.0, *(1.0 for _ in base.layers[1:]))
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
    found = [
        Method("SparVAR", "SparVAR, CS4A and CSLA 60:40", sparse),
        Method("CSLA alone", "SparVAR, supplement B", local),
        Method("ToProVAR", "ToProVAR, fixed counts", toprovar(base, thresholds)),
        Method("FastVAR", "FastVAR, without skipping", fastvar(base)),
        Method("SparseVAR", "SparseVAR, anchors", sparsevar(base)),
        Method("random tokens", "baseline", kept_tokens(base, "random", "output", last - 2, (0.5, 0.25))),
        Method("ToMe", "baseline", kept_tokens(base, "tome", "merge", last - 2, (0.5, 0.26))),
        Method("PiToMe", "baseline", kept_tokens(base, "pitome", "merge", last - 2, (0.5, 0.26))),
        Method("conditional last 1", "SkipVAR", conditional(base, 1)),
        Method("conditional last 3", "SkipVAR", conditional(base, 3)),
    ]
    if skipping:
        found += [
            Method("skip last 1", "SkipVAR", base.replace(name="skip-1", skip={"last": 1})),
            Method("skip last 2", "SkipVAR", base.replace(name="skip-2", skip={"last": 2})),
            Method("FastVAR, skipping", "FastVAR, as published", fastvar(base, skipping=True)),
        ]
    return found


def _windows(base: Plan, scale: int) -> dict[int, int]:
    """CSLA's windows 1, 1, 3, 5, 7 at the five last scales, as far as a scale sees them (SparVAR, B)."""
    sides = zip(range(base.scales - 4, base.scales + 1), (1, 1, 3, 5, 7), strict=True)
    return {at: min(side, 2 * max(base.grid(at)) - 1) for at, side in sides if 1 <= at <= scale}


def compressed(
    base: Plan, selectivity: Sequence[Mapping[int, float]], variance: Sequence[Sequence[float]]
) -> list[Method]:
    """Methods that hold an eighth of the KV cache.

    Args:
        base: the model's all-dense plan.
        selectivity: of its layers, as `scalekv` wants it.
        variance: of its heads, as `hack` wants it.
    """
    budget = base.keys(base.scales) // KV_SHARE
    records = (scalekv(base, selectivity, budget), hack(base, variance, budget), local(base, budget))
    sources = ("ScaleKV", "HACK", "SparVAR, table 2")
    return [
        Method(name, source, base.replace(name=f"{record.method}-{KV_SHARE}", kv=record))
        for name, source, record in zip(COMPRESSED, sources, records, strict=True)
    ]


__all__ = ["COMPRESSED", "Method", "compressed", "published"]
