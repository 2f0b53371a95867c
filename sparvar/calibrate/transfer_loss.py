"""What a plan loses against the model's own images, measured on whole generations at the schedule of a subject."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.measure.measured import LEAST_MSE, Measured
from sparvar.errors import OptionError, SparvarError, message
from sparvar.evaluate.metrics import mse
from sparvar.models.subject import Subject
from sparvar.progress import Progress, Silent
from sparvar.scale_plans import Plan, schedule_text


def compare_plans(
    subject: Subject,
    plan: Plan,
    prompts: Sequence[Any],
    images: int,
    seed: int,
    inner: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Dense images and the plan's, in turns after one of each that compiles and warms up.

    Dense is the model's own code. Image n takes prompt n, in turn, and seed ``seed + n``.

    Args:
        subject: the model and how to draw with it; given back as it was.
        plan: for the subject's schedule and prefix.
        prompts: at least one.
        images: how many, at least 1.
        seed: of the first image.
        inner: compiler of the plan's graphs.
        progress: told of each generation.

    Returns:
        ``psnr_db`` and ``seconds`` of every image with ``psnr_db_mean``, ``psnr_db_least`` and ``seconds_median``;
        ``dense_seconds`` and their median; ``ratio``, the median over images of the plan's seconds to the dense ones;
        ``images`` and ``seed``. PSNR in dB against the dense image, 100 where they are equal.

    Raises:
        OptionError: no prompts or images, or the plan is for another schedule than the subject's.
        PlanError: the plan is for another model.
        SparvarError: an image holds NaN or infinities.
    """
    if not prompts or images < 1:
        raise OptionError(message("comparison", "have at least one prompt and image", f"{len(prompts)} and {images}"))
    if (plan.schedule, plan.prefix) != (subject.schedule, subject.prefix):
        raise OptionError(
            message(
                f"plan {plan.name}",
                f"be for {_where(subject.schedule, subject.prefix)}, as the model draws here",
                f"one for {_where(plan.schedule, plan.prefix)}",
                "carry it over with sparvar.scale_plans.transfer.plan",
            )
        )
    model, progress = subject.model, progress or Silent()
    compile(model, plan, inner=inner)
    attachment = attachment_of(model)
    assert attachment is not None

    def draw(number: int, dense: bool) -> tuple[Tensor, float]:
        prompt = prompts[number % len(prompts)]
        with attachment.paused() if dense else contextlib.nullcontext():
            started = time.perf_counter()
            image = subject.draw(model, prompt, seed + number)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)
            seconds = time.perf_counter() - started
        if not bool(torch.isfinite(image).all()):
            which = "dense" if dense else plan.name
            raise SparvarError(message(f"{which} image of prompt {prompt!r}", "be finite", "NaN or infinities"))
        return image.float().cpu(), seconds

    errors, seconds, dense_seconds = [], [], []
    try:
        progress.step("compiling")
        draw(0, dense=False)
        draw(0, dense=True)
        for number in range(images):
            progress.step(f"image {number + 1} of {images}, dense")
            reference, dense_time = draw(number, dense=True)
            progress.step(f"image {number + 1} of {images}, with the plan")
            image, sparse_time = draw(number, dense=False)
            errors.append(max(mse(image, reference), LEAST_MSE))
            seconds.append(sparse_time)
            dense_seconds.append(dense_time)
    finally:
        detach(model)
    return {
        **Measured(tuple(errors), tuple(seconds)).as_dict(),
        "dense_seconds": dense_seconds,
        "dense_seconds_median": statistics.median(dense_seconds),
        "ratio": statistics.median(a / b for a, b in zip(seconds, dense_seconds, strict=True)),
        "images": images,
        "seed": seed,
    }


def _where(schedule: tuple[tuple[int, int], ...], prefix: int) -> str:
    return schedule_text(schedule) + (f" after {prefix} tokens" if prefix else "")
