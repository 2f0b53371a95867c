"""Generations in which one scale, or some layers of it, are sparse alone: how much that harms images, and how long
sites take inside a whole generation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparvar.calibrate.budget import Effort
from sparvar.calibrate.candidates.candidate import Candidate, ColumnCandidate
from sparvar.calibrate.candidates.space import Choice, Space, plan_of
from sparvar.calibrate.fit.predict import Sensitivity, Sites, fit_sensitivity, kept_share
from sparvar.calibrate.measure.costs import CostTable
from sparvar.calibrate.measure.measured import Measured
from sparvar.calibrate.measure.runner import Runner
from sparvar.scale_plans import Plan

PROBE_BUDGETS = (0.05, 0.2)
LAYER_BUDGET = 0.05
LAYER_GROUPS = 3
"""Layers are probed in as many groups of neighbours."""


@dataclass(frozen=True)
class Probes:
    """Plans that are sparse at one scale alone.

    Attributes:
        runner: draws.
        space: the first of its settings is probed.
        effort: generations of each, and whether every scale and groups of layers are probed.
        sites: what was observed of the candidates.
    """

    runner: Runner
    space: Space
    effort: Effort
    sites: Sites

    def sensitivity(self) -> Sensitivity:
        """How errors of attention become errors of images, for every scale that may be sparse."""
        layers, scales = len(self.runner.base.layers), self.runner.base.scales
        by_scale: dict[int, list[tuple[Candidate, float]]] = {}
        for scale in self._scales():
            self.runner.progress.step(f"how much scale {scale} matters")
            by_scale[scale] = []
            for budget in self._budgets(scale):
                plan, candidate = self._alone(scale, budget, range(layers))
                by_scale[scale].append((candidate, self._probe(plan).image_mse))
        at = max(self.space.first, scales - 1)
        groups: dict[tuple[int, ...], float] = {}
        size = math.ceil(layers / LAYER_GROUPS)
        candidate = self._alone(at, LAYER_BUDGET, range(layers))[1]
        for start in range(0, layers, size) if self.effort.fine else ():
            group = tuple(range(start, min(start + size, layers)))
            self.runner.progress.step(f"how much layers {group[0]} to {group[-1]} matter")
            plan, _ = self._alone(at, LAYER_BUDGET, group)
            groups[group] = self._probe(plan).image_mse
        found = fit_sensitivity(self.sites, layers, by_scale, (at, candidate, groups))
        return found.at_scales(range(self.space.first, scales + 1))

    def corrected(self, table: CostTable) -> CostTable:
        """A table of ops, corrected by what sites took in whole generations.

        Machines drift: the seconds of a probe are compared with the dense ones by way of the scales that are dense in
        both. Neither is compiled, which the difference hardly shows: what is around attention is the same in both.
        """
        runner, layers = self.runner, len(self.runner.base.layers)
        runner.progress.step("timing dense generations")
        dense = runner.time_dense(runner.base, self.effort.probes)
        dense_seconds = dense.median_seconds
        if runner.dense_inner != "eager":
            dense = self._probe(runner.base)
        before = dense.scale_seconds
        extra: dict[int, float] = {}
        decisions: dict[int, list[float]] = {}
        for scale in self._scales():
            gaps = []
            for budget in self._budgets(scale):
                plan, candidate = self._alone(scale, budget, range(layers))
                after = self._probe(plan).scale_seconds
                decision = candidate.decision
                same = [number for number in before if number not in (scale, decision)]
                drift = sum(after[number] for number in same) / sum(before[number] for number in same)
                more = {at: (after[at] / drift - before[at]) / layers for at in (scale, decision)}
                site = table.cs4a(scale, kept_share(self.sites, scale, layers, candidate), False) - table.dense[scale]
                gaps.append(more[scale] - site)
                decisions.setdefault(decision, []).append(more[decision])
            extra[scale] = statistics.mean(gaps)
        decide = {at: table.dense[at] + max(0.0, statistics.median(more)) for at, more in decisions.items()}
        return replace(table, dense_seconds=dense_seconds, extra=extra, decide={**table.decide, **decide})

    def _alone(self, scale: int, budget: float, layers: Sequence[int]) -> tuple[Plan, ColumnCandidate]:
        """A plan in which ``layers`` are sparse at one scale alone, and what runs there."""
        base, setting = self.runner.base, self.space.settings[0]
        decision = max(decision for decision in self.space.decisions if decision < scale)
        policies = tuple("cs4a" if layer in layers else "dense" for layer in range(len(base.layers)))
        choice = Choice(policies, setting, decision, budgets=((scale, budget),))
        return plan_of(base, self.space, choice), ColumnCandidate(decision, setting, budget)

    def _probe(self, plan: Plan) -> Measured:
        return self.runner.probe(plan, self.effort.probes)

    def _scales(self) -> range:
        """Scales that are sparse alone in some generation: all that may be sparse, or the last two."""
        first, last = self.space.first, self.runner.base.scales
        return range(first if self.effort.fine else max(first, last - 1), last + 1)

    def _budgets(self, scale: int) -> tuple[float, ...]:
        """Budgets at which a scale alone is sparse: how much less more keys lose is seen at the last two scales."""
        last = self.runner.base.scales
        seen = (last - 1, last) if self.effort.fine else (last - 1,)
        return PROBE_BUDGETS if scale in seen else PROBE_BUDGETS[:1]
