"""From measured candidates to predicted damage and seconds: the solver's cases.

Damage is the mean squared error of the image. At one scale it is ``c * X ** p`` with X the weighted sum over layers of
squared relative attention errors; c, p and the weights come from whole generations in which one scale, or one layer,
alone was sparse. p is below 1 because what attention's error changes are samples: the share of tokens that are drawn
differently grows with the error, not with its square. Over scales damage adds up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparvar.calibrate.costs import CostTable
from sparvar.calibrate.observe import Sums
from sparvar.calibrate.solver import POLICIES, Answer, Case, ScaleOptions
from sparvar.calibrate.space import Choice, Space, cs4a_key, csla_key
from sparvar.scale_plans import Plan

POWERS = (0.2, 1.5)
WEIGHTS = (0.2, 5.0)
"""Limits of what is fitted: a few generations are noisy."""

Sites = dict[tuple[int, int], Sums]


@dataclass(frozen=True)
class Sensitivity:
    """How attention errors become image error: weight per layer; factor and power per scale."""

    weights: tuple[float, ...]
    factors: dict[int, float]
    powers: dict[int, float]


@dataclass(frozen=True)
class Tag:
    """What a case's layers share, and what its options mean."""

    decision: int
    index_map: str
    first: float | None
    budgets: tuple[tuple[float, ...], ...]


def relative_errors(sites: Sites, scale: int, layers: int, candidate: str) -> list[float]:
    """Squared relative output error of a candidate per layer: sums over heads, rows, queries and prompts."""
    return [
        sum(sites[scale, layer]["errors"][candidate]) / max(sum(sites[scale, layer]["norm"]), 1e-30)
        for layer in range(layers)
    ]


def kept_share(sites: Sites, scale: int, layers: int, candidate: str) -> float:
    """Mean share of keys that a candidate keeps at a scale."""
    found = [sites[scale, layer] for layer in range(layers)]
    return float(sum(site["kept"][candidate][0] for site in found) / sum(site["calls"][0] for site in found))


def fit(
    sites: Sites,
    layers: int,
    by_scale: dict[int, list[tuple[str, float]]],
    by_layer: tuple[int, str, dict[tuple[int, ...], float]],
) -> Sensitivity:
    """Fit the damage model.

    Args:
        sites: what was observed.
        layers: L.
        by_scale: scale to (candidate, image MSE) of generations in which it alone was sparse, in every layer.
        by_layer: scale, candidate, and image MSE of generations in which a group of layers alone was sparse there.
    """
    scale, candidate, groups = by_layer
    factor, power = _law([(sum(relative_errors(sites, scale, layers, name)), mse) for name, mse in by_scale[scale]])
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
        laws[number] = _law(points)
    return Sensitivity(tuple(weights), {k: law[0] for k, law in laws.items()}, {k: law[1] for k, law in laws.items()})


def _law(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(c, p) of ``mse = c * x ** p`` through the first and last of points (x, mse), p within `POWERS`."""
    usable = sorted((x, mse) for x, mse in points if x > 0 and mse > 0)
    if not usable:
        return 1e-12, 1.0  # sparse attention changed nothing in the image
    (low, a), (high, b) = usable[0], usable[-1]
    power = math.log(b / a) / math.log(high / low) if high > low * 1.01 else 0.5
    power = min(max(power, POWERS[0]), POWERS[1])
    # The factor that fits all points best at that power: their geometric mean.
    factor = math.exp(sum(math.log(mse) - power * math.log(x) for x, mse in usable) / len(usable))
    return factor, power


def cases(base: Plan, space: Space, sites: Sites, costs: CostTable, sensitivity: Sensitivity) -> list[Case]:
    """Every combination of decision scale, index map and output correction as a case for the solver."""
    found = []
    for decision in space.decisions:
        for index_map in space.maps:
            for first in (None, *space.firsts):
                tag_budgets = []
                scales = []
                for scale in range(space.first, base.scales + 1):
                    budgets = space.budgets if scale > decision else ()
                    if first is not None and scale == decision + 1:
                        budgets = (first,)
                    tag_budgets.append(budgets)
                    names = [cs4a_key(decision, index_map, budget, first) for budget in budgets]
                    scales.append(
                        _options(base, space, scale, names, sites, costs, sensitivity, first is not None, decision)
                    )
                decide = costs.decide[decision] - costs.dense[decision]
                found.append(Case(Tag(decision, index_map, first, tuple(tag_budgets)), decide, tuple(scales)))
    return found


def _options(
    base: Plan,
    space: Space,
    scale: int,
    names: list[str],
    sites: Sites,
    costs: CostTable,
    sensitivity: Sensitivity,
    correction: bool,
    decision: int,
) -> ScaleOptions:
    layers = len(base.layers)
    weights = np.array(sensitivity.weights)
    dense = costs.dense[scale]
    mapped, mapped_seconds = [np.zeros(layers)], [0.0]
    for name in names:
        mapped.append(weights * relative_errors(sites, scale, layers, name))
        plain = "/".join([*name.split("/")[:-1], "-"])  # how many keys are kept does not depend on the correction
        mapped_seconds.append(costs.cs4a(scale, kept_share(sites, scale, layers, plain), correction) - dense)
    local, local_seconds = [np.zeros(layers)], [0.0]
    for number in range(len(space.ladders)):
        local.append(weights * relative_errors(sites, scale, layers, csla_key(number)))
        local_seconds.append(costs.csla(scale, kept_share(sites, scale, layers, csla_key(number))) - dense)
    return ScaleOptions(
        scale,
        np.array(mapped),
        np.array(mapped_seconds),
        np.array(local),
        np.array(local_seconds),
        sensitivity.factors[scale],
        sensitivity.powers[scale],
        must_map=correction and scale == decision + 1,
    )


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
    return Choice(layers, tag.decision, tag.index_map, tag.first is not None, budgets, windows)
