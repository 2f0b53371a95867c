"""Measure what leaving out tokens and guidance rows does to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparvar.calibrate.reductions import (
    Effects,
    Reduction,
    guided_candidates,
    pruned_candidates,
    source_candidates,
)
from sparvar.calibrate.runner import Runner
from sparvar.scale_plans import Plan


def measure_effects(runner: Runner, base: Plan, probes: int, say: Callable[[str], None]) -> Effects:
    """Image MSE of every reduction alone, with dense attention, in ``probes`` generations each.

    Sources are compared at one share of tokens; the other shares are measured from the one that does best.
    """
    dense = runner.measure(base, "probe", max(2, probes))
    damage: dict[Reduction, float] = {}

    def measure(what: str, found: Sequence[Reduction]) -> None:
        for number, each in enumerate(found, start=1):
            say(f"leaving out {what}: {number} of {len(found)}")
            plan = base.replace(**each.fields(len(base.layers)))
            damage[each] = runner.measure(plan, "probe", probes, inner="eager").damage

    if runner.guided():
        measure("guidance", guided_candidates(base))
    sources = source_candidates(base)
    measure("tokens, by source", sources)
    if sources:
        best = min(sources, key=lambda each: damage[each])
        assert best.pruned is not None
        measure("tokens", pruned_candidates(base, best.pruned.source))
    return Effects(damage, dense.took)


__all__ = ["measure_effects"]
