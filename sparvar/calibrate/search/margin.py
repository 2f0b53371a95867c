"""How far the images of a plan are above or below a budget of PSNR and SSIM, in dB."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.fit.ssim_line import SsimLine
from sparvar.calibrate.measure.measured import Measured

CONFIDENCE = 1.645
"""Standard errors of slack: the mean of new images falls below the budget in one run of twenty."""
EQUAL_DB = 60.0
"""PSNR from which images count as equal, so that one of them does not make the spread."""
LEAST_LOSS = 1e-6
"""Of 1 - SSIM, before its logarithm is taken."""


def goal_db(budget: Budget, line: SsimLine) -> float:
    """Mean PSNR that images need to keep the budget, as far as the line tells it of SSIM."""
    goals = [budget.min_psnr] if budget.min_psnr is not None else []
    if budget.min_ssim is not None:
        slope, offset = line.fit()
        goals.append((math.log(1 - budget.min_ssim) - offset) / slope)
    return max(goals)


def slack_db(measured: Measured, budget: Budget, effort: Effort, line: SsimLine) -> float:
    """What the check images leave above the budget and above the margin for other images."""
    count = math.sqrt(1 / effort.checks + 1 / effort.held_out)
    found: list[float] = []
    if budget.min_psnr is not None:
        margin = CONFIDENCE * _spread([min(value, EQUAL_DB) for value in measured.psnr]) * count
        found.append(measured.mean_psnr - margin - budget.min_psnr)
    if budget.min_ssim is not None:
        mean = measured.mean_ssim
        assert mean is not None
        lost = CONFIDENCE * _spread([math.log(max(1 - value, LEAST_LOSS)) for value in measured.ssim]) * count
        gap = math.log(1 - budget.min_ssim) - math.log(max(1 - mean, LEAST_LOSS))
        found.append((gap - lost) * (-1 / line.fit()[0]))
    return min(found)


def shortfall_db(measured: Measured, budget: Budget, line: SsimLine) -> float:
    """How far images are below the budget; 0 where they keep it."""
    missed = [0.0]
    if budget.min_psnr is not None:
        missed.append(budget.min_psnr - measured.mean_psnr)
    if budget.min_ssim is not None and measured.mean_ssim is not None:
        ratio = max(1 - measured.mean_ssim, LEAST_LOSS) / (1 - budget.min_ssim)
        missed.append(-math.log(ratio) / line.fit()[0])
    return max(missed)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
