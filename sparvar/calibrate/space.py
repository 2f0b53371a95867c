"""The candidates that calibration measures, and the plans they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.scale_plans import Plan

SINK_SHARE = 0.01
"""Sinks are the most leading scales whose tokens are at most this share of the last scale's keys."""

LADDERS = ((1, 1, 3, 3, 5, 7), (3, 3, 3, 5, 7, 9), (5, 5, 7, 7, 9, 11, 15))
"""Sides of csla windows at the last scales, from narrow to wide."""


@dataclass(frozen=True)
class Space:
    """Which values each decision may take.

    Attributes:
        decisions: decision scales.
        maps: index maps.
        budgets: shares of keys that mapped columns keep, ascending.
        firsts: budgets at the first sparse scale for which the output correction, which is made with them, is
            measured; each is one of ``budgets``.
        ladders: csla windows, each a mapping from scale to side.
        sink_scales: leading scales that are always kept.
        stride: every how many queries of a tile the column sums look at.
    """

    decisions: tuple[int, ...]
    maps: tuple[str, ...]
    budgets: tuple[float, ...]
    firsts: tuple[float, ...]
    ladders: tuple[Mapping[int, int], ...]
    sink_scales: int
    stride: int

    @property
    def first(self) -> int:
        """The first scale that may be sparse."""
        return min(self.decisions) + 1


def default_space(base: Plan) -> Space:
    """Decision at one of the three scales before the second last; everything else as measured to matter before."""
    scales = base.scales
    decisions = tuple(scale for scale in range(scales - 4, scales - 1) if scale >= 2) or (max(1, scales - 1),)
    sinks = base.prefix
    leading = 0
    for number in range(1, decisions[0]):
        sinks += base.tokens(number)
        if sinks > SINK_SHARE * base.keys(scales) and number > 1:
            break
        leading = number

    def ladder(sides: Sequence[int]) -> dict[int, int]:
        at = enumerate(sides, start=scales - len(sides) + 1)
        return {scale: min(side, 2 * max(base.grid(scale)) - 1) for scale, side in at if scale > leading}

    return Space(
        decisions=decisions,
        maps=("relative", "footprint"),
        budgets=(0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45),
        firsts=(0.2, 0.3, 0.45),
        ladders=tuple(ladder(sides) for sides in LADDERS),
        sink_scales=leading,
        stride=2 if min(base.tile) >= 4 else 1,
    )


@dataclass(frozen=True)
class Choice:
    """One plan's decisions.

    Attributes:
        decision: decision scale, or None where no layer is cs4a.
        index_map: of cs4a layers.
        correction: whether the output correction is on.
        layers: policy per layer.
        budgets: target scale to budget, for cs4a.
        windows: target scale to number of a ladder, for csla.
    """

    layers: tuple[str, ...]
    decision: int | None = None
    index_map: str = "relative"
    correction: bool = False
    budgets: tuple[tuple[int, float], ...] = ()
    windows: tuple[tuple[int, int], ...] = ()


def plan_of(base: Plan, space: Space, choice: Choice) -> Plan:
    """The plan of a choice. Policies that no scale uses become dense."""
    used = {"cs4a": bool(choice.budgets) and choice.decision is not None, "csla": bool(choice.windows), "dense": True}
    layers = [policy if used[policy] else "dense" for policy in choice.layers]
    mapped, local = "cs4a" in layers, "csla" in layers
    csla: dict[int, Any] = {
        target: {"windows": {scale: side for scale, side in space.ladders[number].items() if scale <= target}}
        for target, number in choice.windows
    }
    return base.replace(
        layers=layers,
        decision_scale=choice.decision if mapped else None,
        index_map=choice.index_map,
        output_correction=choice.correction and mapped,
        sink_scales=space.sink_scales,
        column_sum_stride=space.stride,
        cs4a={target: {"budget": budget, "window": 0} for target, budget in choice.budgets} if mapped else {},
        csla=csla if local else {},
    )


def cs4a_key(decision: int, index_map: str, budget: float, first: float | None) -> str:
    """Name of a cs4a candidate; ``first`` is the budget that the output correction was made with, None without."""
    return f"cs4a/{decision}/{index_map}/{budget:g}/{'-' if first is None else format(first, 'g')}"


def csla_key(ladder: int) -> str:
    """Name of a csla candidate."""
    return f"csla/{ladder}"
