"""Small models and plans for them; ``tests.export.small:build`` and ``:least`` are factories for commands."""

from __future__ import annotations

from typing import Any

from sparvar.scale_plans import Plan
from sparvar.zoo.model import LandscapeVAR
from tests.tiny import tiny_model, tiny_plan

SIDES = (1, 2, 4, 6)


def build() -> LandscapeVAR:
    return tiny_model(SIDES)


def plan_for(model: LandscapeVAR, **changes: Any) -> Plan:
    """Decision at the second scale, a dense, a cs4a and a csla layer at the last two."""
    return tiny_plan(model, **changes)


LEAST = (1, 2, 4)


def least() -> LandscapeVAR:
    """The least model with every sparse kind of block: three scales, a cs4a and a csla layer."""
    return tiny_model(LEAST, depth=2)


def least_plan() -> Plan:
    """For `least`: decision at the first scale."""
    windows = {2: {"windows": {2: 3}}, 3: {"windows": {2: 3, 3: 3}}}
    return tiny_plan(least(), layers=["cs4a", "csla"], sink_scales=1, csla=windows)


SHORT = (1, 2, 4)


def build_short() -> LandscapeVAR:
    """One scale less, for formats whose every program costs seconds."""
    return tiny_model(SHORT)


def short_plan(model: LandscapeVAR, **changes: Any) -> Plan:
    """Decision at the second scale; at the last, one layer of each policy, with correction and a window."""
    fields = {
        "decision_scale": 2,
        "sink_scales": 1,
        "cs4a": {3: {"budget": 0.4, "window": 3}},
        "csla": {3: {"windows": {2: 1, 3: 3}}},
        "output_correction": True,
    }
    return tiny_plan(model, **{**fields, **changes})
