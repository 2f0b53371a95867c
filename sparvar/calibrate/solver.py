"""The cheapest choice within a limit: exact where layers are few, a local search with the same inner step where not.

A problem is a set of *cases* (decision scale, index map, correction). Within a case every layer takes one policy and
every sparse scale one option per policy; error at a scale is a power law of the weighted squared errors of its layers,
and both damage and seconds add up over scales. Given the layers' policies the scales are independent, so that merging
their Pareto fronts gives the optimum; over the layers' policies it is branch and bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POLICIES = ("dense", "cs4a", "csla")
EXACT_ASSIGNMENTS = 20_000
"""Assignments of policies to layers that are searched exhaustively (3**9 is one less than fits)."""
MULTIPLIERS = np.logspace(-8, 8, 33)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScaleOptions:
    """What may run at one scale; option 0 of each policy is dense there.

    Attributes:
        scale: number of the scale.
        mapped: weighted squared error per option and layer, [J, L]; row 0 is zeros.
        mapped_seconds: seconds of one site more than dense, per option [J]; usually negative.
        local: the same for csla, [M, L].
        local_seconds: [M].
        factor: damage is ``factor * error ** power``.
        power: see ``factor``.
        must_map: option 0 is not open to cs4a layers here (the first sparse scale makes the correction).
    """

    scale: int
    mapped: Array
    mapped_seconds: Array
    local: Array
    local_seconds: Array
    factor: float
    power: float
    must_map: bool = False


@dataclass(frozen=True)
class Case:
    """One setting of what all layers share.

    Attributes:
        tag: handed back in the answer.
        decide_seconds: what one deciding site costs more than a dense one.
        scales: every scale that may be sparse, ascending.
    """

    tag: Any
    decide_seconds: float
    scales: tuple[ScaleOptions, ...]


@dataclass(frozen=True)
class Answer:
    """The best choice found.

    Attributes:
        tag: of its case.
        layers: number of the policy (see `POLICIES`) per layer.
        options: (cs4a option, csla option) per scale, as in the case.
        damage: predicted.
        seconds: more than the all-dense plan; negative is faster.
        exact: nothing better exists in the problem.
    """

    tag: Any
    layers: tuple[int, ...]
    options: tuple[tuple[int, int], ...]
    damage: float
    seconds: float
    exact: bool


def solve(
    cases: Sequence[Case], layers: int, *, max_damage: float | None = None, max_seconds: float | None = None
) -> Answer | None:
    """Least seconds within ``max_damage``; or, with ``max_seconds`` alone, least damage within those seconds.

    With both, the least seconds within the damage; None where that is more than ``max_seconds``. None also where no
    choice is within the limit. Ties are broken towards what comes first, so that the answer is always the same.
    """
    by_time = max_damage is not None
    limit = max_damage if max_damage is not None else max_seconds
    if limit is None:
        raise ValueError("solve: max_damage or max_seconds must be given")
    best: Answer | None = None
    exact = len(POLICIES) ** layers <= EXACT_ASSIGNMENTS
    for case in cases:
        search = _Search(case, layers, by_time, limit)
        found = search.exhaustive(best) if exact else search.local(best)
        if found is not None and (best is None or _value(found, by_time) < _value(best, by_time)):
            best = found
    if best is None or (by_time and max_seconds is not None and best.seconds > max_seconds):
        return None
    return best


def _value(answer: Answer, by_time: bool) -> float:
    return answer.seconds if by_time else answer.damage


class _Search:
    def __init__(self, case: Case, layers: int, by_time: bool, limit: float) -> None:
        self.case, self.layers, self.by_time, self.limit = case, layers, by_time, limit

    def _points(self, scale: ScaleOptions, assignment: Array) -> tuple[Array, Array]:
        """Damage and seconds [J * M, A] of every joint option for assignments [L, A] of policy numbers."""
        mapped, local = (assignment == 1).astype(float), (assignment == 2).astype(float)
        error = (scale.mapped @ mapped)[:, None] + (scale.local @ local)[None]
        seconds = (scale.mapped_seconds[:, None] * mapped.sum(0))[:, None] + (
            scale.local_seconds[:, None] * local.sum(0)
        )[None]
        if scale.must_map:
            error[0] = np.where(mapped.sum(0) > 0, np.inf, error[0])
        flat = error.reshape(-1, assignment.shape[1])
        damage = scale.factor * np.power(flat, scale.power, where=flat > 0, out=np.zeros_like(flat))
        return damage, seconds.reshape(damage.shape)

    def _fixed(self, assignment: Array) -> Array:
        total: Array = (assignment == 1).sum(0) * self.case.decide_seconds
        return total

    def _bounds(self, assignment: Array) -> Array:
        """A lower bound of what is minimised, per assignment: the best Lagrangian relaxation of the limit."""
        parts = [self._points(scale, assignment) for scale in self.case.scales]
        fixed = self._fixed(assignment)
        best = np.full(assignment.shape[1], -np.inf)
        for multiplier in MULTIPLIERS:
            total = np.zeros(assignment.shape[1])
            for damage, seconds in parts:
                goal, used = (seconds, damage) if self.by_time else (damage, seconds)
                total += (goal + multiplier * used).min(0)
            if self.by_time:
                best = np.maximum(best, total + fixed - multiplier * self.limit)
            else:
                best = np.maximum(best, total + multiplier * (fixed - self.limit))
        return best

    def _best(self, assignment: Array, cutoff: float) -> Answer | None:
        """The optimum for one assignment [L], if it is below ``cutoff``."""
        column = assignment[:, None]
        fixed = float(self._fixed(column)[0])
        start = (0.0, fixed) if self.by_time else (fixed, 0.0)
        front: list[tuple[float, float, tuple[int, ...]]] = [(*start, ())]
        for scale in self.case.scales:
            damage, seconds = self._points(scale, column)
            used, goal = (damage, seconds) if self.by_time else (seconds, damage)
            pairs = zip(used[:, 0].tolist(), goal[:, 0].tolist(), strict=True)
            options = _pareto([(u, g, (number,)) for number, (u, g) in enumerate(pairs)])
            merged = [(u + v, g + h, (*a, *b)) for u, g, a in front for v, h, b in options]
            front = _pareto(merged)
        within = [entry for entry in front if entry[0] <= self.limit]
        if not within:
            return None
        used_total, goal_total, picked = min(within, key=lambda entry: entry[1])
        if goal_total >= cutoff:
            return None
        widths = [scale.local.shape[0] for scale in self.case.scales]
        options_of = tuple(divmod(number, width) for number, width in zip(picked, widths, strict=True))
        damage_total, seconds_total = (used_total, goal_total) if self.by_time else (goal_total, used_total)
        policies = tuple(int(policy) for policy in assignment)
        return Answer(self.case.tag, policies, options_of, damage_total, seconds_total, True)

    def exhaustive(self, best: Answer | None) -> Answer | None:
        """Branch and bound over every assignment, the most promising first."""
        every = np.array(list(itertools.product(range(len(POLICIES)), repeat=self.layers)), dtype=float).T
        bounds = self._bounds(every)
        cutoff = np.inf if best is None else _value(best, self.by_time)
        found: Answer | None = None
        for number in np.argsort(bounds, kind="stable"):
            if bounds[number] >= cutoff:
                break
            answer = self._best(every[:, number], cutoff)
            if answer is not None:
                found, cutoff = answer, _value(answer, self.by_time)
        return found

    def local(self, best: Answer | None) -> Answer | None:
        """Change one layer at a time, from several starts, while that helps."""
        cutoff = np.inf if best is None else _value(best, self.by_time)
        found: Answer | None = None
        for start in self._starts():
            current = self._best(start, np.inf)
            while current is not None:
                at = np.array(current.layers, dtype=float)
                near = _neighbours(at)
                bounds = self._bounds(near)
                better: Answer | None = None
                for number in np.argsort(bounds, kind="stable"):
                    if bounds[number] >= current.seconds if self.by_time else bounds[number] >= current.damage:
                        break
                    better = self._best(near[:, number], _value(current, self.by_time) - 1e-12)
                    if better is not None:
                        break
                if better is None:
                    break
                current = better
            if current is not None and _value(current, self.by_time) < cutoff:
                found = Answer(**{**current.__dict__, "exact": False})
                cutoff = _value(current, self.by_time)
        return found

    def _starts(self) -> Iterator[Array]:
        for policy in range(len(POLICIES)):
            yield np.full(self.layers, float(policy))
        half = np.full(self.layers, 2.0)
        half[: round(0.6 * self.layers)] = 1.0
        yield half


def _neighbours(at: Array) -> Array:
    changed = []
    for layer in range(len(at)):
        for policy in range(len(POLICIES)):
            if policy != at[layer]:
                other = at.copy()
                other[layer] = policy
                changed.append(other)
    return np.array(changed).T


def _pareto(points: list[tuple[float, float, tuple[int, ...]]]) -> list[tuple[float, float, tuple[int, ...]]]:
    """Points of which no other has less of both, by the first value; of equals the first option."""
    front: list[tuple[float, float, tuple[int, ...]]] = []
    least = np.inf
    for point in sorted(points):
        if point[1] < least and np.isfinite(point[0]):
            front.append(point)
            least = point[1]
    return front
