"""A small model of four scales, and plans for it; ``tests.export.small:build`` is a factory for commands."""

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
