"""A choice per image among static plans (SkipVAR): what decides, and the plans that it decides between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from sparvar.scale_plans.records import Record

FEATURES = ("edges", "fine")
"""What an image is judged by, at the decision: how much its edges changed in the scale (mean absolute difference of
Sobel magnitudes), and the share of its FFT amplitude at high frequencies."""


class Logistic(Record):
    """A logistic model: P = 1 / (1 + exp(-(bias + sum of weights * features)))."""

    bias: float
    weights: tuple[float, ...]
    """Of `FEATURES`, in their own units."""

    def probability(self, features: Sequence[float]) -> float:
        """P of "yes" for the features of one image."""
        score = self.bias + sum(weight * value for weight, value in zip(self.weights, features, strict=True))
        return 1 / (1 + math.exp(-min(max(score, -700.0), 700.0)))


class Adapt(Record):
    """Every generation looks at its images once and goes on with one of a few plans (SkipVAR, arXiv 2506.08908).

    An image may do without the last n scales where the models of 1 to n all say so with at least ``least``; the same
    for unconditional rows, which count only where no scale is skipped. A batch does what its most careful image does.
    """

    fingerprint: str
    """Of the model whose images the logistic models were fitted on; no other model takes them."""
    scale: int
    """The images are decoded before and after this scale, and the rest of the plan is chosen."""
    skip: tuple[Logistic, ...] = ()
    """Entry n - 1: whether the last n scales need not be drawn."""
    conditional: tuple[Logistic, ...] = ()
    """Entry n - 1: whether the last n scales need no unconditional rows."""
    fill: Literal["copy", "delta"] = "copy"
    """What stands for unconditional rows, see `Guidance`."""
    least: float = 0.5
    """Probability from which on an image does without."""


def decide(adapt: Adapt, features: Sequence[Sequence[float]]) -> tuple[int, int]:
    """(last scales to skip, last scales without unconditional rows), one of them 0, for a batch.

    Args:
        adapt: what decides.
        features: of every image, see `FEATURES`.
    """
    skip = min(_may(adapt.skip, adapt.least, image) for image in features)
    return (skip, 0) if skip else (0, min(_may(adapt.conditional, adapt.least, image) for image in features))


def _may(models: Sequence[Logistic], least: float, image: Sequence[float]) -> int:
    count = 0
    while count < len(models) and models[count].probability(image) >= least:
        count += 1
    return count
