"""The smallest KV cache that keeps a stated quality: whole generations at ever fewer keys."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.backend import compile, detach
from sparvar.errors import OptionError, message
from sparvar.evaluate.metrics import mse, psnr_of_mse
from sparvar.models.subject import Subject
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


@dataclass(frozen=True)
class KVSearch:
    """Where and how `calibrate_kv` looks.

    Attributes:
        low, high: budgets (keys per head and layer) to look between.
        steps: budgets that are tried after these two.
        seed: of the first prompt's image; the others take those that follow.
        inner: compiler of the plans' graphs.
    """

    low: int
    high: int
    steps: int = 3
    seed: int = 0
    inner: str = "eager"


def calibrate_kv(
    subject: Subject,
    base: Plan,
    compression: Callable[[int], KVCompression],
    prompts: Sequence[Any],
    min_psnr: float,
    search: KVSearch,
) -> tuple[Plan | None, dict[int, float]]:
    """``base`` with the smallest cache whose images stay within ``min_psnr`` dB, and the mean PSNR of every budget.

    Args:
        subject: unattached.
        base: what else is left out; references are images of the model's own code.
        compression: of a budget (keys per head and layer), e.g. ``partial(local, base)``.
        prompts: one image each.
        min_psnr: mean over the images, dB.
        search: the budgets that are tried.

    Returns:
        None for the plan where even ``search.high`` keys lose more.

    Raises:
        OptionError: there is no prompt.
    """
    if not prompts:
        raise OptionError(message("prompts", "name at least one image", "none"))
    numbered = list(enumerate(prompts, start=search.seed))
    references = [subject.draw(subject.model, prompt, number) for number, prompt in numbered]
    tried: dict[int, float] = {}

    def measure(budget: int) -> float:
        if budget not in tried:
            compile(subject.model, base.replace(kv=compression(budget)), inner=search.inner)
            try:
                images = [subject.draw(subject.model, prompt, number) for number, prompt in numbered]
            finally:
                detach(subject.model)
            pairs = zip(images, references, strict=True)
            tried[budget] = statistics.fmean(psnr_of_mse(max(mse(*pair), 1e-12)) for pair in pairs)
        return tried[budget]

    found = least_budget(measure, search.low, search.high, min_psnr, search.steps)
    return (None if found is None else base.replace(kv=compression(found))), tried
