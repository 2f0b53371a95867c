"""Calibration from end to end: the function that users call, and its parts for those who show how it goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.candidates.space import default_space
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.measure.attached_model import AttachedModel
from sparvar.calibrate.measure.dense_time import apply_effort, time_dense_image
from sparvar.calibrate.measure.images import Images
from sparvar.calibrate.measure.runner import Runner
from sparvar.calibrate.options import CalibrationOptions
from sparvar.calibrate.pipeline import Pipeline
from sparvar.calibrate.report import report
from sparvar.errors import OptionError, message
from sparvar.kernels import find_gpu
from sparvar.models.subject import Subject
from sparvar.progress import Progress, Silent
from sparvar.scale_plans import Plan
from sparvar.version import __version__


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        plan: the cheapest plan found that meets the budget, with what was measured.
        report: everything for ``calibration.json``.
    """

    plan: Plan
    report: dict[str, Any]


def calibrate(
    subject: Subject,
    prompts: Sequence[Any],
    budget: Budget,
    work: Path,
    options: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Find the cheapest plan that meets a budget on this machine.

    Args:
        subject: the model and how to draw with it; given back as it was.
        prompts: what calibration draws, in turn; held-out images have some for themselves, see `split_prompts`.
        budget: see `Budget`.
        work: folder of the journal; one calibration at a time.
        options: seed, compiler, effort and what may be left out; see `CalibrationOptions`.
        progress: told of every step.

    Raises:
        OptionError: no prompts, a journal of another run, an unknown target, or SSIM asked where it cannot be had.
        SparvarError: NaN in the model, no time left, or no plan meets all budgets (the nearest is named).
        CaptureError: ``skip`` or ``per_image``, and the model's images cannot be decoded before its last scale.
        OutputError: the journal cannot be written, or another run holds it.
    """
    with start_calibration(subject, prompts, budget, work, options, progress) as pipeline:
        return finish_calibration(pipeline)


@contextmanager
def start_calibration(
    subject: Subject,
    prompts: Sequence[Any],
    budget: Budget,
    work: Path,
    options: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[Pipeline]:
    """A calibration of which the effort is known and nothing else is done: `calibrate` in two steps.

    Arguments and errors are those of `calibrate`. `finish_calibration` does the rest, within the ``with``.
    """
    options = options or CalibrationOptions()
    if not prompts:
        raise OptionError(message("prompts", "hold at least one", "none", "write one label or JSON value per line"))
    options.check(budget)
    begun = time.monotonic()
    gpu = None if options.target is None else find_gpu(options.target)
    base = base_plan(subject)
    space = default_space(base)
    header = {
        "tool": f"sparvar {__version__}",
        "torch": torch.__version__,
        "model": base.model.fingerprint,
        "weights": subject.digest(),
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "seed": options.seed,
        "space": repr(space),
    }
    with Journal(work, header, options.resume) as journal:
        model = AttachedModel(subject.model, options.inner)
        images = Images(subject, prompts, model, journal, options.seed)
        images.deadline = None if options.seconds_in_all is None else begun + options.seconds_in_all
        runner = Runner(images, base, progress or Silent())
        try:
            effort = options.effort or Effort.within(time_dense_image(runner))
            if options.images is not None:
                effort = effort.with_images(options.images)
            apply_effort(runner, effort)
            how = "thorough" if effort.fine else "quick"
            runner.progress.step(f"a {how} search with {effort.checks} images, {effort.held_out} more held out")
            yield Pipeline(runner, space if effort.fine else space.coarse(), budget, effort, options, gpu, begun)
        finally:
            model.detach()


def finish_calibration(pipeline: Pipeline) -> Calibration:
    """Everything after `start_calibration`."""
    finished = pipeline.run()
    return Calibration(finished.plan, report(pipeline, finished))
