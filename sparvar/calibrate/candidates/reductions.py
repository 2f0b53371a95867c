"""Tokens, rows and scales left out, as calibration sees them: candidates, what they cost in quality, what they save.

The image MSE of guidance and of pruning is measured in whole generations with dense attention, each alone, and adds up
with that of sparse attention; where a scale computes a share of its tokens, sparse attention harms that share alone.
Where scales are skipped, the last that is drawn takes the place of the last, and tokens are left out of it together
with what is skipped. Seconds of a scale are those of its rows and tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparvar.calibrate.search.solver import Case
from sparvar.scale_plans import Plan

GUIDED = 5
"""Late scales from which guidance may be dropped on."""
KEEPS = (0.5, 0.25, 0.03)
"""Shares of the last scale's tokens that are tried, beside `FIRST_KEEP`."""
FIRST_KEEP = 0.1
"""The share at which sources are compared."""
PAIRS = ((0.5, 0.25), (0.5, 0.1), (0.25, 0.03))
"""Shares of the second last and of the last scale's tokens together."""
SOURCES = 3
"""Scales before the first pruned one that may be the source."""
SKIPPED = 2
"""Most of the last scales that may be skipped (FastVAR and SkipVAR skip two)."""
SKIPPED_KEEPS = (0.5, 0.25, 0.1)
"""Shares of the tokens of the last drawn scale that are tried where scales are skipped."""
MERGED = ((0.75, 0.26), (0.5, 0.26))
"""There, too, shares that merging leaves of the last two drawn scales."""


@dataclass(frozen=True, order=True)
class Pruned:
    """One span over all layers: its source scale, the shares kept by scale, how tokens are scored and filled in."""

    source: int
    keep: tuple[tuple[int, float], ...]
    score: str = "pivot"
    fill: str = "delta"


@dataclass(frozen=True, order=True)
class Reduction:
    """What is left out beside columns.

    Attributes:
        conditional_from: first scale without unconditional rows; 0 for none.
        pruned: tokens left out, or None.
        skip: how many of the last scales are not drawn.
    """

    conditional_from: int = 0
    pruned: Pruned | None = None
    skip: int = 0

    def fields(self, layers: int) -> dict[str, Any]:
        """The fields of a plan that say it."""
        found: dict[str, Any] = {"guidance": None, "pruning": None, "skip": None}
        if self.skip:
            found["skip"] = {"last": self.skip}
        if self.conditional_from:
            found["guidance"] = {"conditional_from": self.conditional_from, "fill": "delta"}
        if self.pruned is not None:
            span = {"first": 0, "last": layers - 1, "keep": dict(self.pruned.keep)}
            found["pruning"] = {
                "score": self.pruned.score,
                "fill": self.pruned.fill,
                "source": self.pruned.source,
                "spans": [span],
            }
        return found

    def share(self, scale: int, scales: int) -> float:
        """Share of a scale's rows and tokens that are computed, of a schedule of ``scales``."""
        rows = 0.5 if self.conditional_from and scale >= self.conditional_from else 1.0
        return rows * self.kept(scale, scales)

    def kept(self, scale: int, scales: int) -> float:
        """Share of a scale's tokens that are computed."""
        if scale > scales - self.skip:
            return 0.0
        return dict(self.pruned.keep).get(scale, 1.0) if self.pruned is not None else 1.0


NO_REDUCTION = Reduction()


def guided_candidates(base: Plan) -> list[Reduction]:
    """Droppings of guidance, from the last scale on, from the one before, and so on."""
    return [Reduction(conditional_from=scale) for scale in range(base.scales, max(base.scales - GUIDED, 2), -1)]


def source_candidates(base: Plan) -> list[Reduction]:
    """The last scale pruned from every source."""
    last = base.scales
    found = [
        Reduction(pruned=Pruned(source, ((last, FIRST_KEEP),)))
        for source in range(last - 1, max(last - 1 - SOURCES, 1), -1)
    ]
    return _possible(base, found)


def pruned_candidates(base: Plan, source: int, pairs: bool = True) -> list[Reduction]:
    """The last scale, and with ``pairs`` the two last ones, pruned from the source that did best."""
    last = base.scales
    found = [Reduction(pruned=Pruned(source, ((last, keep),))) for keep in KEEPS]
    if pairs and source < last - 1:
        found += [Reduction(pruned=Pruned(source, ((last - 1, early), (last, keep)))) for early, keep in PAIRS]
    return _possible(base, found)


def skipped_candidates(base: Plan) -> list[Reduction]:
    """The last scale skipped, and the two last ones."""
    return [Reduction(skip=count) for count in range(1, SKIPPED + 1) if base.scales - count >= 2]


def skipped_pruned_candidates(base: Plan, skip: int, back: int) -> list[Reduction]:
    """Where scales are skipped, the last that is drawn pruned from the one ``back`` scales before it, or merged.

    Merging (ToMe) keeps an average of what it takes together: it harms less than pruning where few tokens are left out.
    """
    last = base.scales - skip
    source = max(last - back, 1)
    if source >= last:
        return []
    pruned = [Pruned(source, ((last, keep),)) for keep in SKIPPED_KEEPS]
    if last > 3:
        pruned += [Pruned(last - 2, ((last - 1, early), (last, keep)), "tome", "merge") for early, keep in MERGED]
    return _possible(base, [Reduction(pruned=each, skip=skip) for each in pruned])


def _possible(base: Plan, found: list[Reduction]) -> list[Reduction]:
    return [each for each in found if all(round(share * base.tokens(at)) >= 1 for at, share in _keep(each))]


def _keep(reduction: Reduction) -> tuple[tuple[int, float], ...]:
    return reduction.pruned.keep if reduction.pruned is not None else ()


@dataclass(frozen=True)
class Effects:
    """What calibration knows of reductions.

    Attributes:
        image_mse: of each that was measured: dropped guidance, pruning, and skipped scales, pruned or not.
        blocks: seconds of all blocks of a dense generation per scale.
        scales: of the schedule.
    """

    image_mse: Mapping[Reduction, float]
    blocks: Mapping[int, float]
    scales: int

    def saves(self, reduction: Reduction) -> float:
        """Seconds of dense blocks that a reduction leaves out."""
        return sum((1 - reduction.share(scale, self.scales)) * seconds for scale, seconds in self.blocks.items())

    def front(self) -> list[Reduction]:
        """Reductions, and what dropped guidance adds to them, of which no other saves more at less image MSE."""
        guided = [0, *(each.conditional_from for each in self.image_mse if each.conditional_from)]
        rest = [NO_REDUCTION, *(each for each in self.image_mse if not each.conditional_from)]
        pairs = [
            replace(each, conditional_from=first)
            for first, each in itertools.product(guided, rest)
            if first <= self.scales - each.skip
        ]
        ordered = sorted(pairs, key=lambda each: (self.predicted_mse(each), -self.saves(each)))
        front: list[Reduction] = []
        most = -1.0
        for each in ordered:
            if self.saves(each) > most:
                front.append(each)
                most = self.saves(each)
        return front

    def predicted_mse(self, reduction: Reduction) -> float:
        """Image MSE of a reduction: parts add up, and so do scales without guidance, of which some are skipped."""
        rest = replace(reduction, conditional_from=0)
        total = self.image_mse[rest] if rest != NO_REDUCTION else 0.0
        if reduction.conditional_from:
            total += self.image_mse[Reduction(reduction.conditional_from)]
            if reduction.skip:
                total -= self.image_mse.get(Reduction(self.scales - reduction.skip + 1), 0.0)
        return max(total, 0.0) if rest == NO_REDUCTION else max(total, self.image_mse[rest])


def with_reductions(cases: Sequence[Case], reductions: Iterable[Reduction], effects: Effects) -> list[Case]:
    """Every case with every reduction: its scales' options cost and harm the share of tokens that is left."""
    found = []
    for reduction in reductions:
        saved, image_mse = effects.saves(reduction), effects.predicted_mse(reduction)
        for case in cases:
            if reduction.pruned is not None and case.tag.decision >= min(dict(reduction.pruned.keep)):
                continue
            if case.tag.decision >= effects.scales - reduction.skip:
                continue
            scales = []
            for scale in case.scales:
                share = reduction.share(scale.scale, effects.scales)
                scales.append(
                    replace(
                        scale,
                        mapped_seconds=np.asarray(scale.mapped_seconds) * share,
                        local_seconds=np.asarray(scale.local_seconds) * share,
                        factor=scale.factor * reduction.kept(scale.scale, effects.scales),
                    )
                )
            tag = replace(case.tag, reduction=reduction)
            decide = case.decide_seconds * reduction.share(case.tag.decision, effects.scales)
            found.append(
                replace(case, tag=tag, decide_seconds=decide, scales=tuple(scales), image_mse=image_mse, seconds=-saved)
            )
    return found


def as_record(effects: Effects) -> dict[str, Any]:
    """For ``calibration.json``."""
    return {
        "reductions": [
            {
                "conditional_from": each.conditional_from or None,
                "pruned": dataclasses.asdict(each.pruned) if each.pruned is not None else None,
                "skip": each.skip or None,
                "mse": image_mse,
                "saves_seconds": effects.saves(each),
            }
            for each, image_mse in effects.image_mse.items()
        ],
        "blocks_seconds": dict(effects.blocks),
    }
