"""The cheapest choice within a limit: exact where layers are few, a local search with the same inner step where not.

A problem is a set of *cases* (decision scale, index map, correction). Within a case every layer takes one policy and
every sparse scale one option per policy; error at a scale is a power law of the weighted squared errors of its layers,
and both image MSE and seconds add up over scales. Given the layers' policies the scales are independent, so that
merging their Pareto fronts gives the optimum; over the layers' policies it is branch and bound.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POLICIES = ("dense", "cs4a", "csla")
EXACT_ASSIGNMENTS = 20_000
"""Assignments of policies to layers that are searched exhaustively (3**9 is one less than fits)."""
FRONT_POINTS = 128
LOCAL_CASES = 3
"""Of many layers, cases that are searched beyond their starts: the best after the first assignments."""
MULTIPLIERS = np.logspace(-8, 8, 33)
FINER = np.log(10) * np.array([-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4])
"""Steps to the multipliers that are tried around the best of those, on a logarithmic scale."""
SLACK = 1e-12
"""Of sums that are made in another order."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScaleOptions:
    """What may run at one scale; option 0 of each policy is dense there.

    Attributes:
        scale: number of the scale.
        mapped: weighted squared error per option and layer, [J, L]; row 0 is zeros; inf where a layer may not take it.
        mapped_seconds: seconds of one site more than dense, per option [J]; usually negative.
        local: the same for csla, [M, L].
        local_seconds: [M].
        factor: image MSE is ``factor * error ** power``.
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
        image_mse, seconds: of what the case leaves out beside columns, whatever its layers do; seconds more than dense.
    """

    tag: Any
    decide_seconds: float
    scales: tuple[ScaleOptions, ...]
    image_mse: float = 0.0
    seconds: float = 0.0

    @property
    def least_seconds(self) -> float:
        """No choice within the case takes less."""
        layers = self.scales[0].mapped.shape[1] if self.scales else 0
        options = ((scale.mapped_seconds.min(), scale.local_seconds.min()) for scale in self.scales)
        decide = layers * min(0.0, self.decide_seconds)
        return self.seconds + decide + sum(layers * min(0.0, *map(float, pair)) for pair in options)


@dataclass(frozen=True)
class Answer:
    """The best choice found.

    Attributes:
        tag: of its case.
        layers: number of the policy (see `POLICIES`) per layer.
        options: (cs4a option, csla option) per scale, as in the case.
        image_mse: predicted.
        seconds: more than the all-dense plan; negative is faster.
        exact: nothing better exists in the problem.
    """

    tag: Any
    layers: tuple[int, ...]
    options: tuple[tuple[int, int], ...]
    image_mse: float
    seconds: float
    exact: bool


def solve(
    cases: Sequence[Case], layers: int, *, max_image_mse: float | None = None, max_seconds: float | None = None
) -> Answer | None:
    """Least seconds within ``max_image_mse``; or, with ``max_seconds`` alone, least image MSE within those seconds.

    With both, the least seconds within the image MSE; None where that is more than ``max_seconds``. None also where no
    choice is within the limit. Ties are broken towards what comes first, so that the answer is always the same.
    """
    by_time = max_image_mse is not None
    limit = max_image_mse if max_image_mse is not None else max_seconds
    if limit is None:
        raise ValueError("solve: max_image_mse or max_seconds must be given")
    exact = len(POLICIES) ** layers <= EXACT_ASSIGNMENTS
    searches = [
        _Search(case, layers, by_time, limit, exact) for case in cases if not by_time or case.image_mse <= limit
    ]
    best = _best_first(searches, layers) if exact else _local_search(searches, by_time)
    if best is None or (by_time and max_seconds is not None and best.seconds > max_seconds):
        return None
    return best


def _best_first(searches: Sequence[_Search], layers: int) -> Answer | None:
    """Branch and bound over all assignments of all cases at once, always what promises most; its first is the best.

    A case is bounded first by what no choice within it can beat, then at a few multipliers, then assignment by
    assignment, and only as long as it is the most promising: of many cases most are never looked into.
    """
    every = np.array(list(itertools.product(range(len(POLICIES)), repeat=layers)), dtype=float).T
    # (bound, case, step or assignment): of equals the first case, and in it the first assignment.
    heap = [(search.least, number, -2) for number, search in enumerate(searches)]
    heapq.heapify(heap)
    waiting: dict[int, Iterator[tuple[float, int]]] = {}
    best: Answer | None = None
    while heap and (best is None or heap[0][0] < _value(best, searches[0].by_time)):
        bound, number, at = heapq.heappop(heap)
        search = searches[number]
        if at == -2:
            rough = float(search.bounds(every, MULTIPLIERS[::8]).min())
            heapq.heappush(heap, (max(rough, bound), number, -1))
            continue
        if at == -1:
            bounds = search.bounds(every, MULTIPLIERS)
            order = np.argsort(bounds, kind="stable").tolist()
            waiting[number] = iter([(float(bounds[each]), each) for each in order])
        else:
            cutoff = np.inf if best is None else _value(best, search.by_time)
            best = search.best(every[:, at], cutoff) or best
        following = next(waiting[number], None)
        if following is not None:
            heapq.heappush(heap, (following[0], number, following[1]))
    return best


def _local_search(searches: Sequence[_Search], by_time: bool) -> Answer | None:
    """The best that local searches of the most promising cases find."""
    best: Answer | None = None
    for search in sorted(searches, key=_Search.start_value)[:LOCAL_CASES]:
        found = search.local(best)
        if found is not None and (best is None or _value(found, by_time) < _value(best, by_time)):
            best = found
    return best


def _value(answer: Answer, by_time: bool) -> float:
    return answer.seconds if by_time else answer.image_mse


class _Search:
    def __init__(self, case: Case, layers: int, by_time: bool, limit: float, exact: bool) -> None:
        self.case, self.layers, self.by_time, self.limit, self.exact = case, layers, by_time, limit, exact

    def _points(self, scale: ScaleOptions, assignment: Array) -> tuple[Array, Array]:
        """Image MSE and seconds [J * M, A] of every joint option for assignments [L, A] of policy numbers."""
        mapped, local = (assignment == 1).astype(float), (assignment == 2).astype(float)
        error = _summed(scale.mapped, mapped)[:, None] + _summed(scale.local, local)[None]
        seconds = (scale.mapped_seconds[:, None] * mapped.sum(0))[:, None] + (
            scale.local_seconds[:, None] * local.sum(0)
        )[None]
        if scale.must_map:
            error[0] = np.where(mapped.sum(0) > 0, np.inf, error[0])
        flat = error.reshape(-1, assignment.shape[1])
        image_mse = np.power(flat, scale.power, where=flat > 0, out=np.zeros_like(flat))
        image_mse = np.where(np.isinf(flat), np.inf, scale.factor * np.where(np.isinf(flat), 0.0, image_mse))
        return image_mse, seconds.reshape(image_mse.shape)

    def _fixed(self, assignment: Array) -> Array:
        total: Array = self.case.seconds + (assignment == 1).sum(0) * self.case.decide_seconds
        return total

    @property
    def least(self) -> float:
        """No choice within the case has less of what is minimised."""
        return self.case.least_seconds if self.by_time else self.case.image_mse

    def bounds(self, assignment: Array, multipliers: Array) -> Array:
        """A lower bound of what is minimised, per assignment: the best Lagrangian relaxation of the limit.

        Where ``multipliers`` are all there are, more of them are tried between the neighbours of each one's best.
        """
        parts = self._parts(assignment)
        fixed = self._fixed(assignment)

        def relaxed(multiplier: Array) -> Array:
            total = np.zeros(assignment.shape[1])
            for used, goal in parts:
                total += (goal + multiplier * used).min(0)
            if self.by_time:
                return total + fixed + multiplier * (self.case.image_mse - self.limit)
            return total + self.case.image_mse + multiplier * (fixed - self.limit)

        found = np.array([relaxed(multiplier) for multiplier in multipliers])
        best: Array = found.max(0)
        if len(multipliers) == len(MULTIPLIERS):
            near = np.log(MULTIPLIERS)[found.argmax(0)]
            for step in FINER:
                best = np.maximum(best, relaxed(np.exp(near + step)))
        return best

    def _parts(self, assignment: Array) -> list[tuple[Array, Array]]:
        """(what is limited, what is minimised) per scale, see `_points`."""
        found = [self._points(scale, assignment) for scale in self.case.scales]
        return [pair if self.by_time else (pair[1], pair[0]) for pair in found]

    def best(self, assignment: Array, cutoff: float) -> Answer | None:
        """The optimum for one assignment [L], if it is below ``cutoff``."""
        column = assignment[:, None]
        fixed = float(self._fixed(column)[0])
        mse_of, seconds_of = np.array([self.case.image_mse]), np.array([fixed])
        used_front, goal_front = (mse_of, seconds_of) if self.by_time else (seconds_of, mse_of)
        picks = np.zeros((1, 0), dtype=np.int64)
        parts = [(used[:, 0], goal[:, 0]) for used, goal in self._parts(column)]
        for at, (used, goal) in enumerate(parts):
            kept = _pareto(used, goal)
            sums = (used_front[:, None] + used[kept]).ravel(), (goal_front[:, None] + goal[kept]).ravel()
            # What no choice of the scales that follow brings back within the limit, or below the cutoff, is left.
            rest = [sum(float(pair[which].min()) for pair in parts[at + 1 :]) for which in (0, 1)]
            open_still = (sums[0] <= self.limit - rest[0] + SLACK) & (sums[1] < cutoff - rest[1] + SLACK)
            order = self._thinned(_pareto(*(np.where(open_still, each, np.inf) for each in sums)))
            rows, columns = np.divmod(order, len(kept))
            used_front, goal_front = sums[0][order], sums[1][order]
            picks = np.concatenate([picks[rows], kept[columns][:, None]], axis=1)
        within = np.flatnonzero(used_front <= self.limit)
        if not len(within):
            return None
        at = within[np.argmin(goal_front[within])]
        used_total, goal_total, picked = float(used_front[at]), float(goal_front[at]), picks[at].tolist()
        if goal_total >= cutoff:
            return None
        widths = [scale.local.shape[0] for scale in self.case.scales]
        options_of = tuple(divmod(number, width) for number, width in zip(picked, widths, strict=True))
        mse_total, seconds_total = (used_total, goal_total) if self.by_time else (goal_total, used_total)
        policies = tuple(int(policy) for policy in assignment)
        return Answer(self.case.tag, policies, options_of, mse_total, seconds_total, True)

    def _thinned(self, front: NDArray[np.int64]) -> NDArray[np.int64]:
        """At most `FRONT_POINTS` of a front, its ends among them, where the search is not exact anyway."""
        if self.exact or len(front) <= FRONT_POINTS:
            return front
        return front[np.linspace(0, len(front) - 1, FRONT_POINTS).round().astype(np.int64)]

    def start_value(self) -> float:
        """What the best of the starts gives, without a search around it."""
        found = [answer for start in self._starts() if (answer := self.best(start, np.inf)) is not None]
        return min((_value(answer, self.by_time) for answer in found), default=np.inf)

    def local(self, best: Answer | None) -> Answer | None:
        """Change one layer at a time, from several starts, while that helps."""
        cutoff = np.inf if best is None else _value(best, self.by_time)
        found: Answer | None = None
        for start in self._starts():
            current = self.best(start, np.inf)
            while current is not None:
                at = np.array(current.layers, dtype=float)
                near = _neighbours(at)
                bounds = self.bounds(near, MULTIPLIERS)
                better: Answer | None = None
                for number in np.argsort(bounds, kind="stable"):
                    if bounds[number] >= current.seconds if self.by_time else bounds[number] >= current.image_mse:
                        break
                    better = self.best(near[:, number], _value(current, self.by_time) - 1e-12)
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


def _summed(errors: Array, takes: Array) -> Array:
    """``errors`` [J, L] over the layers that ``takes`` [L, A] names, [J, A]; infinities of others do not count."""
    barred = np.isinf(errors)
    total: Array = np.where(barred, 0.0, errors) @ takes
    total[(barred.astype(float) @ takes) > 0] = np.inf
    return total


def _neighbours(at: Array) -> Array:
    changed = []
    for layer in range(len(at)):
        for policy in range(len(POLICIES)):
            if policy != at[layer]:
                other = at.copy()
                other[layer] = policy
                changed.append(other)
    return np.array(changed).T


def _pareto(used: Array, goal: Array) -> NDArray[np.int64]:
    """Points of which no other has less of both, by ``used``; of equals the first."""
    order = np.lexsort((goal, used))
    order = order[np.isfinite(used[order])]
    before = np.concatenate([[np.inf], np.minimum.accumulate(goal[order])[:-1]])
    front: NDArray[np.int64] = order[goal[order] < before]
    return front
