"""Whole generations of the model under a plan, timed and compared with the model's own, each kept in the journal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from sparvar.calibrate.fit.difficulty import log_detail
from sparvar.calibrate.fit.ssim_line import SsimLine
from sparvar.calibrate.measure.images import Images
from sparvar.calibrate.measure.measured import LEAST_MSE, Measured, aggregate
from sparvar.errors import OptionError, SessionError, message
from sparvar.evaluate.metrics import SSIM_WINDOW, ssim
from sparvar.heap import mmap_large_blocks
from sparvar.kernels import trim_memory
from sparvar.progress import Progress
from sparvar.runtime.hooks import Hook, SiteTimes
from sparvar.scale_plans import Plan

TIMED = 4
"""Generations of which one may go untimed, because it compiles; of fewer each is timed, after one that warms up."""


class Runner:
    """Runs plans and compares their images with the dense ones.

    Attributes:
        images: draws.
        base: the all-dense plan.
        progress: told of every step.
        model: see `Images`.
        journal: likewise.
        ssim_line: SSIM over PSNR of every image that was measured.
    """

    def __init__(self, images: Images, base: Plan, progress: Progress) -> None:
        self.images, self.base, self.progress = images, base, progress
        self.model, self.journal = images.model, images.journal
        self.ssim_line = SsimLine()

    def details(self, stage: str, count: int, begin: int = 0) -> list[float]:
        """`log_detail` of dense images."""
        return [log_detail(self.images.dense(stage, number)) for number in range(begin, begin + count)]

    def measure(self, plan: Plan, stage: str, count: int, begin: int = 0, inner: str = "") -> Measured:
        """``count`` generations of a plan from number ``begin`` of a stage.

        ``inner`` "eager" where the images matter, or how seconds compare with those of another plan run so: nothing is
        compiled for a plan that runs a few times.
        """
        for number in range(begin, begin + count):
            self.images.dense(stage, number)  # all of them first: each detaches the model
        warm_up = count < TIMED
        records = [self.record(plan, stage, number, inner, warm_up) for number in range(begin, begin + count)]
        if all(record["seconds"] is None for record in records):  # of a run that was killed after every one of them
            records[0] = self.record(plan, stage, begin, inner, True, "/again")
        return aggregate(records)

    def probe(self, plan: Plan, count: int) -> Measured:
        """Generations for what they lose, or for how their seconds compare with those of another probe."""
        return self.measure(plan, "probe", count, inner="eager")

    @property
    def dense_inner(self) -> str:
        """Compiler of dense generations that are timed; "" for the model's."""
        return "eager" if self.model.device.type == "cpu" else ""

    def time_dense(self, plan: Plan, count: int) -> Measured:
        """Seconds of generations with dense attention and of their sites, with the heap as users have it.

        A processor takes as long for their graphs uncompiled (20.4 and 20.6 s on the shipped model), so that nothing is
        compiled for them there; a GPU does not.
        """
        return aggregate(
            [self.record(plan, "probe", number, self.dense_inner, True, "/timed") for number in range(count)]
        )

    def record(
        self, plan: Plan, stage: str, number: int, inner: str = "", warm_up: bool = True, suffix: str = ""
    ) -> dict[str, Any]:
        """``mse``, ``seconds``, ``ssim`` (or None) and, of probes, ``took`` (scale to seconds) of one generation.

        Without ``warm_up``, a generation that compiles is the image of a plan like any other, and its seconds are None.
        ``suffix`` tells measurements of one plan and image apart in the journal.
        """
        reference = self.images.dense(stage, number)

        def measure() -> dict[str, Any]:
            compiles = self.model.attach(plan, inner)
            if compiles:
                self.progress.step("compiling")
                if warm_up:
                    with mmap_large_blocks():
                        self.images.draw(stage, 0)
                    compiles = False
            times = SiteTimes()
            trim_memory()  # holes of the image before: 140 MiB less at the peak for 1 % more seconds
            started = time.perf_counter()
            with (
                mmap_large_blocks() if (inner and not suffix) or compiles else contextlib.nullcontext(),
                self.model.attachment.hooked(times) if stage == "probe" else contextlib.nullcontext(),
            ):
                image = self.images.draw(stage, number)
            seconds = None if compiles else time.perf_counter() - started
            image = image.float().cpu()
            mse = max(float((image - reference).square().mean()), LEAST_MSE)
            return {"mse": mse, "seconds": seconds, "ssim": _ssim(image, reference), "took": times.seconds}

        key = f"{stage}/{plan.digest}/{number}{inner and '/' + inner}{suffix}"
        record: dict[str, Any] = self.journal.get(key, measure)
        self.ssim_line.add(record["mse"], record["ssim"])
        return record

    def decoded_scales(self, plan: Plan, stage: str, number: int, scales: Collection[int]) -> dict[int, Tensor]:
        """What a generation of a plan has drawn after each of ``scales``, decoded, [B, 3, H, W].

        Raises:
            CaptureError: the model's images cannot be decoded before its last scale.
            OptionError: ``draw`` makes something else of them.
        """
        drawn = _Drawn({*scales, plan.drawn})
        self.model.attach(plan, "eager")
        with mmap_large_blocks(), self.model.attachment.hooked(drawn):
            image = self.images.draw(stage, number).float().cpu()
        if not set(scales) <= set(drawn.images) or not _same(drawn.images[plan.drawn], image):
            must = "return the image of the model's own generation method, as it is"
            raise OptionError(message("draw", must, "another", "calibrate without choices per image"))
        return drawn.images

    def uses_guidance(self, plan: Plan) -> bool:
        """Whether the model draws with guidance, a conditional and an unconditional half of rows, which ``plan`` drops.

        It is a probe of the plan as well.
        """

        def try_plan() -> bool:
            try:
                self.record(plan, "probe", 0, inner="eager")
            except SessionError:
                self.model.detach()
                return False
            return True

        return bool(self.journal.get("guided", try_plan))


class _Drawn(Hook):
    """What is drawn after some scales, decoded, [B, 3, H, W], on the CPU."""

    def __init__(self, wanted: Collection[int]) -> None:
        self.wanted = wanted
        self.images: dict[int, Tensor] = {}

    def scale_finished(self, scale: int, decode: Callable[[], Tensor]) -> None:
        if scale in self.wanted:
            self.images[scale] = decode().float().cpu().clone()


def _same(decoded: Tensor, image: Tensor) -> bool:
    return decoded.numel() == image.numel() and torch.allclose(decoded.reshape(image.shape), image, atol=1e-4)


def _ssim(image: Tensor, reference: Tensor) -> float | None:
    """SSIM of images [3, H, W] or [B, 3, H, W], or None for other shapes."""
    measurable = image.ndim in (3, 4) and min(image.shape[-2:]) >= SSIM_WINDOW
    return ssim(image, reference) if measurable else None
