"""What rounds of the closed loop, and its held-out images, leave behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sparvar.calibrate.candidates.space import Choice
from sparvar.calibrate.measure.runner import LEAST_MSE, Measured
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Trial:
    """A plan of one round: damage (MSE) and seconds as predicted, and what running it gave.

    ``gain`` is the solver's own figure, seconds more than dense: free of what was timed during the rounds. ``begin`` is
    the number of the first check image that it ran on.
    """

    plan: Plan
    damage: float
    seconds: float
    exact: bool
    measured: Measured | None
    gain: float = 0.0
    choice: Choice | None = None
    begin: int = 0

    def predicted(self) -> dict[str, float]:
        """PSNR (dB; 100 where the plan is dense) and seconds before it was run."""
        return {"psnr_db": decibels(self.damage), "seconds": self.seconds}

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        measured = self.measured.as_dict() if self.measured is not None else None
        return {
            "digest": self.plan.digest,
            "predicted": self.predicted(),
            "exact": self.exact,
            "measured": measured,
            "cost": self.plan.cost(),
        }


@dataclass(frozen=True)
class Held:
    """What the held-out images said: generations, the largest relative output error of a site, and how often tried.

    ``expected``: their mean PSNR (dB) as foretold before the plan ran on them, of which ``easier`` because they have
    less detail than those that checked it. ``seconds``: the median foretold, which is that of the images that checked
    it where the plan ran on this machine, and else the solver's.
    """

    measured: Measured
    error: float | None
    attempts: int
    expected: float
    easier: float
    seconds: float

    def foretold(self) -> dict[str, float]:
        """PSNR (dB), seconds, and the dB of them that less detail makes."""
        return {"psnr_db": self.expected, "seconds": self.seconds, "easier_db": self.easier}


def decibels(damage: float) -> float:
    """PSNR of a damage; 100 dB where there is none."""
    return -10 * math.log10(max(damage, LEAST_MSE))


def plain(plan: Plan) -> bool:
    """Whether a plan draws every token and row of every scale with dense attention, over a whole cache or not."""
    sites = ((scale, layer) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers)))
    sparse = any(plan.attention_kind(scale, layer) != "dense" for scale, layer in sites)
    return not sparse and not plan.reduces and not plan.shortens


__all__ = ["Held", "Trial", "decibels", "plain"]
