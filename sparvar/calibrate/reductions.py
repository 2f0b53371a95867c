"""Tokens and rows left out, as calibration sees them: candidates, what they cost in quality, what they save.

Damage of guidance and of pruning is measured in whole generations with dense attention, each alone, and adds up with
that of sparse attention; where a scale computes a share of its tokens, sparse attention harms that share alone. Seconds
of a scale are those of its rows and tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparvar.scale_plans import Plan

if TYPE_CHECKING:
    from sparvar.calibrate.solver import Case

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


@dataclass(frozen=True, order=True)
class Pruned:
    """One span over all layers: its source scale and the shares kept, by scale."""

    source: int
    keep: tuple[tuple[int, float], ...]


@dataclass(frozen=True, order=True)
class Reduction:
    """What is left out beside columns.

    Attributes:
        conditional_from: first scale without unconditional rows; 0 for none.
        pruned: tokens left out, or None.
    """

    conditional_from: int = 0
    pruned: Pruned | None = None

    def fields(self, layers: int) -> dict[str, Any]:
        """The fields of a plan that say it."""
        found: dict[str, Any] = {"guidance": None, "pruning": None}
        if self.conditional_from:
            found["guidance"] = {"conditional_from": self.conditional_from, "fill": "delta"}
        if self.pruned is not None:
            span = {"first": 0, "last": layers - 1, "keep": dict(self.pruned.keep)}
            found["pruning"] = {
                "score": "pivot",
                "fill": "delta",
                "source": self.pruned.source,
                "spans": [span],
            }
        return found

    def share(self, scale: int) -> float:
        """Share of a scale's rows and tokens that are computed."""
        rows = 0.5 if self.conditional_from and scale >= self.conditional_from else 1.0
        return rows * self.kept(scale)

    def kept(self, scale: int) -> float:
        """Share of a scale's tokens that are computed."""
        return dict(self.pruned.keep).get(scale, 1.0) if self.pruned is not None else 1.0


NOTHING = Reduction()


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


def pruned_candidates(base: Plan, source: int) -> list[Reduction]:
    """The last scale, and the two last ones, pruned from the source that did best."""
    last = base.scales
    found = [Reduction(pruned=Pruned(source, ((last, keep),))) for keep in KEEPS]
    if source < last - 1:
        found += [Reduction(pruned=Pruned(source, ((last - 1, early), (last, keep)))) for early, keep in PAIRS]
    return _possible(base, found)


def _possible(base: Plan, found: list[Reduction]) -> list[Reduction]:
    return [each for each in found if all(round(share * base.tokens(at)) >= 1 for at, share in _keep(each))]


def _keep(reduction: Reduction) -> tuple[tuple[int, float], ...]:
    return reduction.pruned.keep if reduction.pruned is not None else ()


@dataclass(frozen=True)
class Effects:
    """What calibration knows of reductions.

    Attributes:
        damage: image MSE of each alone.
        blocks: seconds of all blocks of a dense generation per scale.
    """

    damage: Mapping[Reduction, float]
    blocks: Mapping[int, float]

    def saves(self, reduction: Reduction) -> float:
        """Seconds of dense blocks that a reduction leaves out."""
        return sum((1 - reduction.share(scale)) * seconds for scale, seconds in self.blocks.items())

    def front(self) -> list[Reduction]:
        """Reductions, and pairs of a dropping and a pruning, of which no other saves more with less damage."""
        guided = [each for each in self.damage if each.pruned is None]
        pruned = [each for each in self.damage if each.pruned is not None]
        pairs = [
            Reduction(one.conditional_from, other.pruned)
            for one, other in itertools.product((NOTHING, *guided), (NOTHING, *pruned))
        ]
        ordered = sorted(pairs, key=lambda each: (self.of(each), -self.saves(each)))
        front: list[Reduction] = []
        most = -1.0
        for each in ordered:
            if self.saves(each) > most:
                front.append(each)
                most = self.saves(each)
        return front

    def of(self, reduction: Reduction) -> float:
        """Damage of a reduction: its parts add up."""
        parts = (Reduction(reduction.conditional_from), Reduction(pruned=reduction.pruned))
        return sum(self.damage[part] for part in parts if part != NOTHING)


def expanded(cases: Sequence[Case], reductions: Iterable[Reduction], effects: Effects) -> list[Case]:
    """Every case with every reduction: its scales' options cost and harm the share of tokens that is left."""
    found = []
    for reduction in reductions:
        saved, damage = effects.saves(reduction), effects.of(reduction)
        for case in cases:
            if reduction.pruned is not None and case.tag.decision >= min(dict(reduction.pruned.keep)):
                continue
            scales = []
            for scale in case.scales:
                share = reduction.share(scale.scale)
                scales.append(
                    dataclasses.replace(
                        scale,
                        mapped_seconds=np.asarray(scale.mapped_seconds) * share,
                        local_seconds=np.asarray(scale.local_seconds) * share,
                        factor=scale.factor * reduction.kept(scale.scale),
                    )
                )
            tag = dataclasses.replace(case.tag, reduction=reduction)
            decide = case.decide_seconds * reduction.share(case.tag.decision)
            found.append(
                dataclasses.replace(
                    case, tag=tag, decide_seconds=decide, scales=tuple(scales), damage=damage, seconds=-saved
                )
            )
    return found


def as_record(effects: Effects) -> dict[str, Any]:
    """For ``calibration.json``."""
    return {
        "reductions": [
            {
                "conditional_from": each.conditional_from or None,
                "pruned": dataclasses.asdict(each.pruned) if each.pruned is not None else None,
                "mse": damage,
                "saves_seconds": effects.saves(each),
            }
            for each, damage in effects.damage.items()
        ],
        "blocks_seconds": dict(effects.blocks),
    }
