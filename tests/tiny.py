"""A small model of the shipped architecture, and plans for it, for tests that run everything."""

from __future__ import annotations

from typing import Any

import torch

from sparvar.models.fingerprint import fingerprint
from sparvar.scale_plans import Plan
from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer

SIDES = (1, 2, 3, 4, 6, 8)
DEPTH = 3
LABELS: list[str | int] = ["mountain", 3]


def tiny_model(sides: tuple[int, ...] = SIDES, seed: int = 0, depth: int = DEPTH) -> LandscapeVAR:
    """Random weights, sharp attention, ``sides`` as the schedule, images of 4*sides[-1] pixels."""
    torch.manual_seed(seed)
    tokenizer = BitTokenizer(dim=8, patch=4, sides=sides, width=8, depth=1)
    tokenizer.basis.copy_(torch.linalg.qr(torch.randn(48, 8))[0].T)
    model = LandscapeVAR(tokenizer, width=128, depth=depth, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model.eval().requires_grad_(False)


def plan_fields(model: LandscapeVAR) -> dict[str, Any]:
    """Fields of a hybrid plan: decision at the fourth scale, the last two sparse, tiles of 2x3."""
    scales = len(model.sides)
    return {
        "name": "tiny",
        "model": {
            "fingerprint": fingerprint(model),
            "sites": [f"blocks.{i}.attn" for i in range(len(model.blocks))],
            "heads": 2,
            "head_dim": 64,
            "family": "tiny",
        },
        "schedule": [[side, side] for side in model.sides],
        "tile": [2, 3],
        "sink_scales": 2,
        "decision_scale": scales - 2,
        "layers": ["dense", "cs4a", "csla"],
        "cs4a": {scales - 1: {"budget": 0.5, "window": 3}, scales: {"budget": 0.3, "window": 3}},
        "csla": {
            scales - 1: {"windows": {scales - 2: 3, scales - 1: 3}},
            scales: {"windows": {scales - 2: 3, scales - 1: 3, scales: 3}},
        },
    }


def tiny_plan(model: LandscapeVAR, **changes: Any) -> Plan:
    return Plan.model_validate({**plan_fields(model), **changes}).require()


def dense_changes(layers: int = DEPTH) -> dict[str, Any]:
    """Changes that make a plan all dense."""
    return {"layers": ["dense"] * layers, "decision_scale": None, "cs4a": {}, "csla": {}}


def full_window_changes(sides: tuple[int, ...] = SIDES, layers: int = DEPTH) -> dict[str, Any]:
    """Changes that send every layer through the sparse path with windows that hold every key."""
    last = len(sides)
    return {
        "layers": ["csla"] * layers,
        "decision_scale": None,
        "cs4a": {},
        "csla": {
            scale: {"windows": {past: 2 * sides[past - 1] - 1 for past in range(1, scale + 1)}}
            for scale in (last - 1, last)
        },
    }


def generate(model: torch.nn.Module, **changes: Any) -> torch.Tensor:
    return model.generate(**{"labels": LABELS, "seed": 3, "cfg": 2.0, **changes})  # type: ignore[operator]
