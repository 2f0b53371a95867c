"""Models that the command is told to calibrate in tests."""

from __future__ import annotations

import torch

from sparvar.zoo import LandscapeVAR
from tests.tiny import tiny_model


def tiny() -> LandscapeVAR:
    """Random weights: sparse attention changes its images beyond recognition."""
    return tiny_model()


def broken() -> LandscapeVAR:
    """A model whose keys overflow in its second layer."""
    model = tiny_model()
    with torch.no_grad():
        next(model.blocks[1].parameters()).fill_(float("nan"))
    return model


def number() -> int:
    """No model at all."""
    return 3
