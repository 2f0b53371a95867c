"""Whole generations of the model under a plan, timed and compared with the model's own, each kept in the journal."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.observe import Observer, as_record
from sparvar.calibrate.space import Space
from sparvar.calibrate.subject import Subject
from sparvar.errors import SparvarError, message
from sparvar.scale_plans import Plan

STAGES = {"observe": 0, "probe": 0, "check": 1000, "held": 2000}
"""Stage to first seed: what is observed, checked and held out never shares a seed."""
LEAST_MSE = 1e-10
"""Images that are equal count as 100 dB."""


@dataclass(frozen=True)
class Measured:
    """Generations of one plan: image MSE, PSNR in dB and seconds of each."""

    mse: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def psnr(self) -> list[float]:
        """PSNR of each image against the dense one, dB."""
        return [-10 * math.log10(value) for value in self.mse]

    @property
    def mean_psnr(self) -> float:
        """Mean of dB, the figure that budgets are about."""
        return statistics.mean(self.psnr)

    @property
    def damage(self) -> float:
        """Geometric mean of the MSE, which is the mean PSNR on the solver's scale."""
        return float(10 ** (-self.mean_psnr / 10))

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "psnr_db": self.psnr,
            "psnr_db_mean": self.mean_psnr,
            "psnr_db_least": min(self.psnr),
            "seconds": list(self.seconds),
            "seconds_median": self.median_seconds,
        }


class Runner:
    """Runs generations; attaches and detaches the model as each needs."""

    def __init__(
        self,
        subject: Subject,
        base: Plan,
        prompts: Sequence[Any],
        journal: Journal,
        seed: int,
        inner: str,
        deadline: float | None,
        say: Callable[[str], None],
    ) -> None:
        self.subject, self.base, self.prompts, self.journal = subject, base, list(prompts), journal
        self.seed, self.inner, self.deadline, self.say = seed, inner, deadline, say
        self._attached: str | None = None
        self._warm: set[tuple[str, int]] = set()

    def _draw(self, stage: str, number: int) -> Tensor:
        if self.deadline is not None and time.monotonic() > self.deadline:
            must = "end within --max-seconds-total"
            raise SparvarError(message("calibration", must, "more work left", "go on with --resume"))
        prompt = self.prompts[number % len(self.prompts)]
        image = self.subject.draw(self.subject.model, prompt, self.seed * 10_000 + STAGES[stage] + number)
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)
        if not bool(torch.isfinite(image).all()):
            raise SparvarError(message(f"image of prompt {prompt!r}", "be finite", "NaN or infinities"))
        return image

    def dense(self, stage: str, number: int) -> Tensor:
        """The image of the model's own code."""

        def draw() -> Tensor:
            self._detach()
            return self._draw(stage, number)

        return self.journal.image(f"{stage}/{number}", draw)

    def _detach(self) -> None:
        detach(self.subject.model)
        self._attached = None

    def _attach(self, plan: Plan, stage: str) -> None:
        if self._attached == plan.digest:
            return
        compile(self.subject.model, plan, inner=self.inner)
        self._attached = plan.digest
        kinds = {
            (plan.kind(scale, layer), scale) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))
        }
        if not kinds <= self._warm:
            self.say("compiling")
            self._draw(stage, 0)
            self._warm |= kinds

    def observe(self, space: Space, number: int) -> dict[str, Any]:
        """What an observer saw in one generation: ``rows`` and ``sites``."""

        def measure() -> dict[str, Any]:
            self._detach()
            # Candidates run op by op beside dense attention: compiling the rest would only take time.
            compile(self.subject.model, self.base, inner="eager")
            attachment = attachment_of(self.subject.model)
            assert attachment is not None
            observer = attachment.observer = Observer(self.base, space)
            try:
                self._draw("observe", number)
            finally:
                self._detach()
            return {"rows": observer.rows, "sites": as_record(observer.sites)}

        record: dict[str, Any] = self.journal.get(f"observe/{number}", measure)
        return record

    def measure(self, plan: Plan, stage: str, count: int, begin: int = 0) -> Measured:
        """``count`` generations of a plan from number ``begin`` of a stage."""
        for number in range(begin, begin + count):
            self.dense(stage, number)  # all of them first: each detaches the model
        results = [self.one(plan, stage, number) for number in range(begin, begin + count)]
        return Measured(*zip(*results, strict=True))

    def one(self, plan: Plan, stage: str, number: int) -> tuple[float, float]:
        """(image MSE, seconds) of one generation."""
        reference = self.dense(stage, number)

        def measure() -> list[float]:
            self._attach(plan, stage)
            started = time.perf_counter()
            image = self._draw(stage, number)
            seconds = time.perf_counter() - started
            mse = float((image.float().cpu() - reference).square().mean())
            return [max(mse, LEAST_MSE), seconds]

        mse, seconds = self.journal.get(f"{stage}/{plan.digest}/{number}", measure)
        return mse, seconds

    def close(self) -> None:
        """Give the model back as it was."""
        self._detach()
