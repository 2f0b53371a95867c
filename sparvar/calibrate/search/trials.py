"""What rounds of the closed loop, and its held-out images, leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparvar.calibrate.candidates.space import Choice
from sparvar.calibrate.measure.measured import LEAST_MSE, Measured
from sparvar.evaluate.metrics import psnr_of_mse
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Trial:
    """A plan of one round.

    Attributes:
        plan: what was solved.
        image_mse, seconds: predicted.
        exact: nothing better exists in the solver's problem.
        measured: what running it gave; None where it was not run.
        gain: seconds more than dense by the solver's own figure, free of what was timed during the rounds.
        choice: the decisions that the plan was made of.
        begin: number of the first check image that it ran on.
    """

    plan: Plan
    image_mse: float
    seconds: float
    exact: bool
    measured: Measured | None
    gain: float = 0.0
    choice: Choice | None = None
    begin: int = 0

    def predicted(self) -> dict[str, float]:
        """PSNR (dB; 100 where the plan is dense) and seconds before it was run."""
        return {"psnr_db": psnr_of_mse(max(self.image_mse, LEAST_MSE)), "seconds": self.seconds}

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
    """What the held-out images said.

    Attributes:
        measured: their generations.
        error: the largest relative output error of a site; None where it was not asked for.
        attempts: sets of held-out images that were run.
        psnr_db: their mean PSNR as predicted before the plan ran on them.
        detail_gain_db: how much of that comes from less detail than the images have that checked the plan.
        seconds: predicted: the median of the images that checked it where the plan ran on this machine, and else the
            solver's.
    """

    measured: Measured
    error: float | None
    attempts: int
    psnr_db: float
    detail_gain_db: float
    seconds: float

    def predicted(self) -> dict[str, float]:
        """JSON values of what was predicted."""
        return {"psnr_db": self.psnr_db, "seconds": self.seconds, "detail_gain_db": self.detail_gain_db}


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with.

    Attributes:
        chosen: the plan that held-out images have confirmed, or the dense one.
        held: these images.
        trials: every plan that was run on check images.
        front: predicted ``seconds`` of the best plan for a row of PSNRs (``psnr_db``).
        nearest: in words, the best sparse plan where the chosen one is dense.
        per_image: what came of a choice per image, for ``calibration.json``; None where it was not asked for.
    """

    chosen: Trial
    held: Held
    trials: tuple[Trial, ...]
    front: list[dict[str, float]]
    nearest: str | None
    per_image: dict[str, Any] | None


def leaves_nothing_out(plan: Plan) -> bool:
    """Whether a plan draws every token and row of every scale with dense attention, over a whole cache or not."""
    sites = ((scale, layer) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers)))
    sparse = any(plan.attention_kind(scale, layer) != "dense" for scale, layer in sites)
    return not sparse and not plan.reduces and not plan.shortens
