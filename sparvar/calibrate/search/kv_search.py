"""The smallest KV cache that keeps a stated quality: whole generations at ever fewer keys."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparvar.errors import OptionError, message
from sparvar.models.subject import Subject
from sparvar.runtime.attaching import detach
from sparvar.scale_plans import KVCompression, Plan


def least_budget(measure: Callable[[int], float], low: int, high: int, min_psnr: float, steps: int) -> int | None:
    """The least budget tried between ``low`` and ``high`` whose PSNR is at least ``min_psnr``; None where none is.

    Bisection of the logarithm, ``steps`` budgets after the two ends: PSNR grows with the budget, apart from noise.
    """
    if measure(high) < min_psnr:
        return None
    if low >= high or measure(low) >= min_psnr:
        return min(low, high)
    for _ in range(steps):
        middle = round(math.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (low, middle) if measure(middle) >= min_psnr else (middle, high)
    return high


def calibrate_kv(
    subject: Subject,
    base: Plan,
    make: Callable[[int], KVCompression],
    prompts: Sequence[Any],
    min_psnr: float,
    *,
    low: int,
    high: int,
    seed: int = 0,
    steps: int = 3,
    inner: str = "eager",
) -> tuple[Plan | None, dict[int, float]]:
    """``base`` with the smallest cache whose images stay within ``min_psnr`` dB, and the mean PSNR of every budget.

    Args:
        subject: unattached.
        base: what else is left out; references are images of the model's own code.
        make: budget (keys per head and layer) to a compression, e.g. ``partial(local, base)``.
        prompts: one image each, with seeds from ``seed`` on.
        low, high: budgets to look between.

    Returns:
        None for the plan where even ``high`` keys lose more.

    Raises:
        OptionError: there is no prompt.
    """
    from sparvar.backend import compile

    if not prompts:
        raise OptionError(message("prompts", "name at least one image", "none"))
    numbered = list(enumerate(prompts, start=seed))
    references = [subject.draw(subject.model, prompt, number) for number, prompt in numbered]
    tried: dict[int, float] = {}

    def measure(budget: int) -> float:
        if budget not in tried:
            compile(subject.model, base.replace(kv=make(budget)), inner=inner)
            try:
                images = [subject.draw(subject.model, prompt, number) for number, prompt in numbered]
            finally:
                detach(subject.model)
            pairs = zip(images, references, strict=True)
            errors = [(image - reference).square().mean().clamp_min(1e-12) for image, reference in pairs]
            tried[budget] = statistics.fmean(float(-10 * torch.log10(error)) for error in errors)
        return tried[budget]

    found = least_budget(measure, low, high, min_psnr, steps)
    return (None if found is None else base.replace(kv=make(found))), tried


__all__ = ["calibrate_kv", "least_budget"]
