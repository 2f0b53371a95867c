"""From measured candidates to the image MSE and seconds that are predicted of them: the solver's cases.

The mean squared error of the image is, at one scale, ``c * X ** p`` with X the weighted sum over layers of
squared relative attention errors; c, p and the weights come from whole generations in which one scale, or one layer,
alone was sparse. p is below 1 because what attention's error changes are samples: the share of tokens that are drawn
differently grows with the error, not with its square. Over scales it adds up.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparvar.calibrate.candidates.candidate import Candidate, ColumnCandidate, Setting, WindowCandidate
from sparvar.calibrate.candidates.reductions import NO_REDUCTION, Reduction
from sparvar.calibrate.candidates.space import Choice, Space
from sparvar.calibrate.measure.costs import CostTable
from sparvar.calibrate.measure.observe import Sums
from sparvar.calibrate.search.solver import POLICIES, Answer, Case, ScaleOptions
from sparvar.scale_plans import Plan

POWERS = (0.2, 1.5)
WEIGHTS = (0.2, 5.0)
"""Limits of what is fitted: a few generations are noisy."""

NEARLY_ALL = 0.9
"""A candidate that keeps as many keys is dense attention with lists: whatever it seems to save is noise of timing."""

Sites = dict[tuple[int, int], Sums]


@dataclass(frozen=True)
class Sensitivity:
    """How attention errors become image error: weight per layer; factor and power per scale."""

    weights: tuple[float, ...]
    factors: dict[int, float]
    powers: dict[int, float]

    def at_scales(self, scales: Iterable[int]) -> Sensitivity:
        """The same for all of ``scales``: one that was not probed takes the law of the nearest, the later of two."""
        near = {scale: min(self.factors, key=lambda known: (abs(known - scale), -known)) for scale in scales}
        factors, powers = ({scale: table[at] for scale, at in near.items()} for table in (self.factors, self.powers))
        return Sensitivity(self.weights, factors, powers)


@dataclass(frozen=True)
class Tag:
    """What a case's layers share, and what its options mean."""

    decision: int
    setting: Setting
    correction: float | None
    budgets: tuple[tuple[float, ...], ...]
    reduction: Reduction = NO_REDUCTION


def relative_errors(sites: Sites, scale: int, layers: int, candidate: Candidate) -> list[float]:
    """Squared relative output error of a candidate per layer: sums over heads, rows, queries and prompts."""
    return [
        sum(sites[scale, layer]["errors"][candidate]) / max(sum(sites[scale, layer]["norm_seen"]), 1e-30)
        for layer in range(layers)
    ]


def kept_share(sites: Sites, scale: int, layers: int, candidate: Candidate) -> float:
    """Mean share of keys that a candidate keeps at a scale."""
    found = [sites[scale, layer] for layer in range(layers)]
    return float(sum(site["kept"][candidate][0] for site in found) / sum(site["calls"][0] for site in found))


def fit_sensitivity(
    sites: Sites,
    layers: int,
    by_scale: dict[int, list[tuple[Candidate, float]]],
    by_layer: tuple[int, Candidate, dict[tuple[int, ...], float]],
) -> Sensitivity:
    """Fit how errors of attention become an image MSE.

    Args:
        sites: what was observed.
        layers: L.
        by_scale: scale to (candidate, image MSE) of generations in which it alone was sparse, in every layer.
        by_layer: scale, candidate, and image MSE of generations in which a group of layers alone was sparse there.
    """
    scale, candidate, groups = by_layer
    factor, power = _power_law(
        [(sum(relative_errors(sites, scale, layers, name)), mse) for name, mse in by_scale[scale]]
    )
    weights = [1.0] * layers
    errors = relative_errors(sites, scale, layers, candidate)
    for group, mse in groups.items():
        alone = sum(errors[layer] for layer in group)
        found = (mse / factor) ** (1 / power) / max(alone, 1e-30) if mse > 0 and factor > 0 else WEIGHTS[0]
        for layer in group:
            weights[layer] = min(max(found, WEIGHTS[0]), WEIGHTS[1])
    laws = {}
    for number, runs in by_scale.items():
        points = []
        for name, mse in runs:
            weighted = zip(weights, relative_errors(sites, number, layers, name), strict=True)
            points.append((sum(weight * error for weight, error in weighted), mse))
        laws[number] = _power_law(points, power)  # of a scale with one budget: as where the layers were told apart
    return Sensitivity(tuple(weights), {k: law[0] for k, law in laws.items()}, {k: law[1] for k, law in laws.items()})


def _power_law(points: list[tuple[float, float]], otherwise: float = 0.5) -> tuple[float, float]:
    """(c, p) of ``mse = c * x ** p`` through the first and last of points (x, mse), p within `POWERS`.

    ``otherwise`` is p where the points do not tell.
    """
    usable = sorted((x, mse) for x, mse in points if x > 0 and mse > 0)
    if not usable:
        return 1e-12, 1.0  # sparse attention changed nothing in the image
    (low, a), (high, b) = usable[0], usable[-1]
    power = math.log(b / a) / math.log(high / low) if high > low * 1.01 else otherwise
    power = min(max(power, POWERS[0]), POWERS[1])
    # The factor that fits all points best at that power: their geometric mean.
    factor = math.exp(sum(math.log(mse) - power * math.log(x) for x, mse in usable) / len(usable))
    return factor, power


def cases(
    base: Plan,
    space: Space,
    sites: Sites,
    costs: CostTable,
    sensitivity: Sensitivity,
    max_error: float | None = None,
) -> list[Case]:
    """Every combination of decision scale, setting and output correction as a case for the solver.

    ``max_error`` bars candidates from layers where their relative output error is above it.
    """
    found = []
    for decision, setting, first in itertools.product(space.decisions, space.settings, (None, *space.firsts)):
        offered = []
        scales = []
        for scale in range(space.first, base.scales + 1):
            budgets = space.budgets if scale > decision else ()
            if first is not None and scale == decision + 1:
                budgets = (first,)
            offered.append(budgets)
            mapped = [ColumnCandidate(decision, setting, budget, first) for budget in budgets]
            local = [WindowCandidate(number, setting.sinks) for number in range(len(space.ladders))]
            must_map = first is not None and scale == decision + 1
            about = _Scale(base, scale, sites, costs, sensitivity, max_error)
            scales.append(about.options(mapped, local, must_map))
        decide = costs.deciding(decision, first)
        found.append(Case(Tag(decision, setting, first, tuple(offered)), decide, tuple(scales)))
    return found


@dataclass(frozen=True)
class _Scale:
    base: Plan
    scale: int
    sites: Sites
    costs: CostTable
    sensitivity: Sensitivity
    max_error: float | None

    def options(
        self, mapped: Sequence[ColumnCandidate], local: Sequence[WindowCandidate], must_map: bool
    ) -> ScaleOptions:
        """The options of a case at this scale; shares of keys are measured without correction, which changes none."""
        scale, layers, costs = self.scale, len(self.base.layers), self.costs
        dense = costs.dense[scale]

        def kept(one: Candidate) -> float:
            plain = one.uncorrected if isinstance(one, ColumnCandidate) else one
            return kept_share(self.sites, scale, layers, plain)

        def seconds(one: ColumnCandidate) -> float:
            return costs.cs4a(scale, kept(one), one.correction is not None) - dense

        return ScaleOptions(
            scale,
            np.array([np.zeros(layers), *(self._errors(one, kept(one)) for one in mapped)]),
            np.array([0.0, *map(seconds, mapped)]),
            np.array([np.zeros(layers), *(self._errors(one, kept(one)) for one in local)]),
            np.array([0.0, *(costs.csla(scale, kept(one)) - dense for one in local)]),
            self.sensitivity.factors[scale],
            self.sensitivity.powers[scale],
            must_map=must_map,
        )

    def _errors(self, candidate: Candidate, kept: float) -> NDArray[np.float64]:
        if kept >= NEARLY_ALL:
            return np.full(len(self.base.layers), np.inf)
        squared = np.array(relative_errors(self.sites, self.scale, len(self.base.layers), candidate))
        weighted = np.array(self.sensitivity.weights) * squared
        return weighted if self.max_error is None else np.where(squared > self.max_error**2, np.inf, weighted)


def choice_of(space: Space, answer: Answer) -> Choice:
    """The decisions of a solver's answer."""
    tag: Tag = answer.tag
    scales = range(space.first, space.first + len(answer.options))
    budgets = tuple(
        (scale, tag.budgets[at][mapped - 1])
        for at, (scale, (mapped, _)) in enumerate(zip(scales, answer.options, strict=True))
        if mapped
    )
    windows = tuple((scale, local - 1) for scale, (_, local) in zip(scales, answer.options, strict=True) if local)
    layers = tuple(POLICIES[policy] for policy in answer.layers)
    return Choice(layers, tag.setting, tag.decision, tag.correction is not None, budgets, windows, tag.reduction)


def candidates_of(plan: Plan, choice: Choice) -> dict[tuple[int, int], Candidate]:
    """(scale, layer) to the candidate that a plan made of ``choice`` runs there."""
    budgets, windows = dict(choice.budgets), dict(choice.windows)
    correction = choice.correction_budget
    found: dict[tuple[int, int], Candidate] = {}
    for scale in range(1, plan.scales + 1):
        for layer, policy in enumerate(plan.layers):
            if plan.kind(scale, layer) != "sparse":
                continue
            if policy == "csla":
                found[scale, layer] = WindowCandidate(windows[scale], choice.setting.sinks)
            else:
                assert choice.decision is not None
                found[scale, layer] = ColumnCandidate(choice.decision, choice.setting, budgets[scale], correction)
    return found


def best_settings(sites: Sites, base: Plan, screened: Space, keep: int) -> tuple[list[Setting], dict[Setting, float]]:
    """The settings with the least error at equal numbers of keys, and the score of each.

    The score is the squared relative error, summed over layers, where each setting's curve over kept keys (a power law
    through its two budgets) passes the middle one of all kept shares; with the output correction or without, whichever
    is less. A setting that keeps more keys for its budget has no advantage.
    """
    scale, (decision,) = screened.only, screened.decisions
    assert scale is not None
    layers = len(base.layers)
    curves: dict[tuple[Setting, float | None], list[tuple[float, float]]] = {}
    for setting in screened.settings:
        for budget in screened.budgets:
            share = kept_share(sites, scale, layers, ColumnCandidate(decision, setting, budget))
            for first in (None, *screened.firsts):
                candidate = ColumnCandidate(decision, setting, budget, first)
                if candidate in sites[scale, 0]["errors"]:
                    error = sum(relative_errors(sites, scale, layers, candidate))
                    curves.setdefault((setting, first), []).append((share, error))
    middle = math.log(statistics.median(share for curve in curves.values() for share, _ in curve))
    scores: dict[Setting, float] = {}
    for (setting, _), curve in curves.items():
        logs = [(math.log(share), math.log(max(error, 1e-30))) for share, error in curve]
        (low, left), (high, right) = logs[0], logs[-1]
        slope = (right - left) / (high - low) if high > low else 0.0
        value = math.exp(left + slope * (middle - low))
        scores[setting] = min(value, scores.get(setting, math.inf))
    order = sorted(screened.settings, key=lambda setting: scores[setting])
    return sorted(order[:keep]), {setting: scores[setting] for setting in order}
