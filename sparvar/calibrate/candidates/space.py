"""Which candidates calibration measures, and the plans that its choices among them stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.calibrate.candidates.candidate import Setting
from sparvar.calibrate.candidates.reductions import NO_REDUCTION, Reduction
from sparvar.scale_plans import INDEX_MAPS, Plan

SINK_SHARES = (0.003, 0.01, 0.03)
"""Sink spans that are tried: the most leading scales whose tokens are at most this share of the last scale's keys."""
WINDOWS = (0, 5)
"""Sides of the window around a tile's queries that mapped columns may have at the current scale; 0 is none."""
LADDERS = ((1, 1, 3, 3, 5, 7), (3, 3, 3, 5, 7, 9), (5, 5, 7, 7, 9, 11, 15))
"""Sides of csla windows at the last scales, from narrow to wide."""
SETTINGS_KEPT = 2
"""Settings that are measured in full, of those that are screened."""
SCREEN_BUDGETS = (0.05, 0.2)
COARSE_BUDGETS = (0.05, 0.12, 0.2, 0.3)


@dataclass(frozen=True)
class Space:
    """Which values each decision may take.

    Attributes:
        decisions: decision scales.
        settings: index map, sink span and window together.
        budgets: shares of keys that mapped columns keep, ascending.
        firsts: budgets at the first sparse scale for which the output correction, which is made with them, is
            measured; each is one of ``budgets``.
        ladders: csla windows, each a mapping from scale to side.
        stride: every how many queries of a tile the column sums look at.
        only: scale at which candidates are measured, or None for all after the first decision scale.
    """

    decisions: tuple[int, ...]
    settings: tuple[Setting, ...]
    budgets: tuple[float, ...]
    firsts: tuple[float, ...]
    ladders: tuple[Mapping[int, int], ...]
    stride: int
    only: int | None = None

    @property
    def first(self) -> int:
        """The first scale that may be sparse."""
        return min(self.decisions) + 1

    @property
    def spans(self) -> tuple[int, ...]:
        """Sink spans among the settings, ascending."""
        return tuple(sorted({setting.sinks for setting in self.settings}))

    def measured(self, scale: int) -> bool:
        """Whether candidates are measured at a scale."""
        return scale >= self.first and self.only in (None, scale)

    def narrowed(self, settings: Iterable[Setting]) -> Space:
        """The same space with some of its settings."""
        return dataclasses.replace(self, settings=tuple(settings))

    def coarse(self) -> Space:
        """The same space with fewer budgets, those of probes among them."""
        return dataclasses.replace(self, budgets=COARSE_BUDGETS, firsts=COARSE_BUDGETS[-2:])

    def screening(self, scales: int) -> Space:
        """Every setting at the second last scale, decided two scales before where that may be, with two budgets."""
        at = max(self.first, scales - 1)
        # Not right before: there a correction is made with the budget itself, and would be seen at one budget alone.
        decision = max([scale for scale in self.decisions if scale < at - 1] or [min(self.decisions)])
        return dataclasses.replace(
            self, decisions=(decision,), budgets=SCREEN_BUDGETS, firsts=SCREEN_BUDGETS[-1:], ladders=(), only=at
        )


def sink_spans(base: Plan, before: int) -> tuple[int, ...]:
    """Numbers of leading scales, below ``before`` and at least 1, that `SINK_SHARES` of the last scale's keys allow."""
    found = []
    grids = base.keys(base.scales) - base.prefix
    for share in SINK_SHARES:
        leading = 1
        # Text tokens in front are always kept and say nothing about scales.
        while leading + 1 < before and base.offset(leading + 2) - base.prefix <= share * grids:
            leading += 1
        found.append(min(leading, before - 1))
    return tuple(sorted(set(found)))


def default_space(base: Plan) -> Space:
    """Decision at one of the three scales before the second last; everything else as measured to matter before."""
    scales = base.scales
    decisions = tuple(scale for scale in range(scales - 4, scales - 1) if scale >= 2) or (max(1, scales - 1),)
    spans = sink_spans(base, decisions[0])

    def ladder(sides: Sequence[int]) -> dict[int, int]:
        at = enumerate(sides, start=scales - len(sides) + 1)
        return {scale: min(side, 2 * max(base.grid(scale)) - 1) for scale, side in at if scale >= 1}

    return Space(
        decisions=decisions,
        settings=tuple(Setting(name, span, window) for name in INDEX_MAPS for span in spans for window in WINDOWS),
        budgets=(0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45),
        firsts=(0.2, 0.3, 0.45),
        ladders=tuple(ladder(sides) for sides in LADDERS),
        stride=2 if min(base.tile) >= 4 else 1,
    )


@dataclass(frozen=True)
class Choice:
    """One plan's decisions.

    Attributes:
        layers: policy per layer.
        setting: index map, sink span and window.
        decision: decision scale, or None where no layer is cs4a.
        correction: whether the output correction is on.
        budgets: target scale to budget, for cs4a.
        windows: target scale to number of a ladder, for csla.
        reduction: tokens and rows that are left out beside.
    """

    layers: tuple[str, ...]
    setting: Setting
    decision: int | None = None
    correction: bool = False
    budgets: tuple[tuple[int, float], ...] = ()
    windows: tuple[tuple[int, int], ...] = ()
    reduction: Reduction = NO_REDUCTION

    @property
    def correction_budget(self) -> float | None:
        """Budget that the output correction is made with, that of the first sparse scale; None without it."""
        return dict(self.budgets)[min(self.budgets)[0]] if self.correction and self.budgets else None


def plan_of(base: Plan, space: Space, choice: Choice) -> Plan:
    """The plan of a choice. Policies that no scale uses become dense."""
    used = {"cs4a": bool(choice.budgets) and choice.decision is not None, "csla": bool(choice.windows), "dense": True}
    layers = [policy if used[policy] else "dense" for policy in choice.layers]
    mapped, local = "cs4a" in layers, "csla" in layers
    setting = choice.setting
    csla: dict[int, Any] = {
        target: {
            "windows": {scale: side for scale, side in space.ladders[number].items() if setting.sinks < scale <= target}
        }
        for target, number in choice.windows
    }
    cs4a = {target: {"budget": budget, "window": setting.window} for target, budget in choice.budgets}
    kv = base.kv.before(base.scales - choice.reduction.skip) if base.kv is not None else None
    return base.replace(
        layers=layers,
        decision_scale=choice.decision if mapped else None,
        index_map=setting.index_map,
        output_correction=choice.correction and mapped,
        sink_scales=setting.sinks,
        column_sum_stride=space.stride,
        cs4a=cs4a if mapped else {},
        csla=csla if local else {},
        kv=kv,
        **choice.reduction.fields(len(base.layers)),
    )
