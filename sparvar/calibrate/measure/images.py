"""Images of a model: which prompt and seed each takes, and the dense ones, which are kept in the journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparvar.calibrate.journal import Journal
from sparvar.calibrate.measure.attached_model import AttachedModel
from sparvar.errors import SparvarError, message
from sparvar.heap import mmap_large_blocks
from sparvar.models.subject import Subject

STAGES = {"observe": 0, "probe": 0, "check": 1000, "held": 2000}
"""Stage to first seed: what is observed, checked and held out never shares a seed."""


def split_prompts(prompts: Sequence[Any], held_out: int) -> tuple[list[Any], list[Any]]:
    """Prompts of calibration and of its held-out images: of their own where there are three times as many as those.

    With fewer, such as the labels of a model with ten classes, both are all prompts, and only seeds are new.
    """
    given = list(prompts)
    if len(given) < 3 * held_out:
        return given, given
    return given[:-held_out], given[-held_out:]


class Images:
    """Draws image ``number`` of a stage with a prompt and a seed that follow from both.

    Attributes:
        subject: how an image is drawn.
        model: the subject's, with the plan that it runs.
        journal: keeps dense images.
        prompts: of every stage but ``held``, which has ``held_prompts``; the same until `split`.
        seed: of the calibration.
        deadline: of `time.monotonic`, after which nothing is drawn; None for no limit.
    """

    def __init__(
        self, subject: Subject, prompts: Sequence[Any], model: AttachedModel, journal: Journal, seed: int = 0
    ) -> None:
        self.subject, self.model, self.journal, self.seed = subject, model, journal, seed
        self.prompts = self.held_prompts = list(prompts)
        self.deadline: float | None = None

    def split(self, held_out: int) -> None:
        """Keep prompts for held-out images, see `split_prompts`."""
        self.prompts, self.held_prompts = split_prompts(self.prompts, held_out)

    def draw(self, stage: str, number: int) -> Tensor:
        """An image under the plan that the model runs.

        Raises:
            SparvarError: it holds NaN or infinities, or the deadline has passed.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            must = "end within --max-seconds-total"
            raise SparvarError(message("calibration", must, "more work left", "go on with --resume"))
        prompts = self.held_prompts if stage == "held" else self.prompts
        prompt = prompts[number % len(prompts)]
        image = self.subject.draw(self.subject.model, prompt, self.seed * 10_000 + STAGES[stage] + number)
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)
        if not bool(torch.isfinite(image).all()):
            raise SparvarError(message(f"image of prompt {prompt!r}", "be finite", "NaN or infinities"))
        return image

    def dense(self, stage: str, number: int) -> Tensor:
        """The image of the model's own code."""

        def draw() -> Tensor:
            self.model.detach()
            with mmap_large_blocks():
                return self.draw(stage, number)

        return self.journal.image(f"{stage}/{number}", draw)

    def time_dense(self) -> float:
        """Seconds of a dense image of the model's own code, which is kept as the first probe's."""
        self.model.detach()
        with mmap_large_blocks():
            if torch.cuda.is_available():
                self.draw("probe", 0)  # the first generation on a GPU loads its kernels
            started = time.perf_counter()
            image = self.draw("probe", 0)
            seconds = time.perf_counter() - started
        self.journal.image("probe/0", lambda: image)
        return seconds
