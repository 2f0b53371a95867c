"""Measure what leaving out tokens, guidance rows and scales does to images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparvar.calibrate.budget import Effort
from sparvar.calibrate.candidates.reductions import (
    Effects,
    Reduction,
    guided_candidates,
    pruned_candidates,
    skipped_candidates,
    skipped_pruned_candidates,
    source_candidates,
)
from sparvar.calibrate.measure.runner import Runner


def measure_effects(runner: Runner, effort: Effort, *, prune: bool = True, skip: bool = False) -> Effects:
    """Image MSE of every reduction alone, with dense attention, in ``effort.probes`` generations each.

    Sources are compared at one share of tokens; the other shares are measured from the one that does best. Of the
    scales from which guidance may go every other one is measured: the MSE of those between is the geometric mean of
    their neighbours', which on the shipped model is 0.1 and 0.2 dB from measuring them.

    Args:
        runner: draws.
        effort: generations of each; sources are compared, and two scales pruned together, where it is ``fine``.
        prune: tokens may be left out.
        skip: scales may be.

    Raises:
        CaptureError: ``skip``, and the model's images cannot be decoded before its last scale.
    """
    base, probes = runner.base, effort.probes
    dense = runner.time_dense(base, probes)
    image_mse: dict[Reduction, float] = {}

    def measure(what: str, found: Sequence[Reduction]) -> None:
        for number, each in enumerate(found, start=1):
            runner.progress.step(f"leaving out {what}: {number} of {len(found)}")
            plan = base.replace(**each.fields(len(base.layers)))
            image_mse[each] = runner.probe(plan, probes).image_mse

    guided = guided_candidates(base)
    measured = guided[::2] if len(guided) % 2 else [*guided[::2], guided[-1]]
    if measured and runner.uses_guidance(base.replace(**measured[0].fields(len(base.layers)))):
        measure("guidance", measured)
        for at, each in enumerate(guided):
            if each not in measured:
                image_mse[each] = math.sqrt(image_mse[guided[at - 1]] * image_mse[guided[at + 1]])
    back = 1
    sources = source_candidates(base) if prune else []
    if not effort.fine:
        sources = sources[1:2] or sources  # two scales before: the best on the shipped model, by 4 dB
    measure("tokens, by source", sources)
    if sources:
        best = min(sources, key=lambda each: image_mse[each])
        assert best.pruned is not None
        back = base.scales - best.pruned.source
        measure("tokens", pruned_candidates(base, best.pruned.source, effort.fine))
    skipped = skipped_candidates(base) if skip else []
    measure("scales", skipped)
    if prune:
        measure(
            "scales and tokens", [one for each in skipped for one in skipped_pruned_candidates(base, each.skip, back)]
        )
    return Effects(image_mse, dense.scale_seconds, base.scales)
