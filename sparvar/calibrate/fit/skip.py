"""Fit what decides per image which of the last scales it needs (SkipVAR), from the model's own dense images."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.measure.measured import LEAST_MSE
from sparvar.errors import OptionError, message
from sparvar.evaluate.metrics import mse, psnr_of_mse, ssim
from sparvar.models.fingerprint import fingerprint
from sparvar.models.subject import Subject, as_subject
from sparvar.progress import Progress, Silent
from sparvar.runtime.choices import features
from sparvar.runtime.hooks import Hook
from sparvar.scale_plans import FEATURES, Adapt, Logistic, Plan

RIDGE = 0.5
"""Weight of the squared weights, of standardised features, against the sum of the images' losses."""

Option = tuple[Literal["skip", "conditional"], int]
"""What is left out, and at how many of the last scales."""


@dataclass(frozen=True)
class Sample:
    """One image: its features, and PSNR in dB and SSIM of every option against its dense image.

    ``seconds`` is the time from the start of the dense generation to the end of each scale, decoding left out.
    """

    prompt: str
    seed: int
    features: tuple[float, ...]
    psnr: Mapping[Option, float]
    ssim: Mapping[Option, float]
    seconds: Mapping[int, float]


@dataclass(frozen=True)
class SkipFit:
    """What was fitted, and on what.

    Attributes:
        adapt: the record for a plan: ``plan.replace(adapt=fit.adapt)``.
        samples: every image.
        accepted: of every option, how many images met the target.
        right: of every option, how many of these images the fitted model says the right thing of.
    """

    adapt: Adapt
    samples: tuple[Sample, ...]
    accepted: Mapping[Option, int]
    right: Mapping[Option, int]

    def __str__(self) -> str:
        lines = [f"{len(self.samples)} images, features {', '.join(FEATURES)} at scale {self.adapt.scale}"]
        for option, count in self.accepted.items():
            what = "skipped" if option[0] == "skip" else "without unconditional rows"
            psnr = [sample.psnr[option] for sample in self.samples]
            ssim = [sample.ssim[option] for sample in self.samples]
            lines.append(
                f"last {option[1]} {what}: {_mean(psnr):.1f} dB (least {min(psnr):.1f}), SSIM {_mean(ssim):.3f}"
                f" (least {min(ssim):.3f}); good enough for {count}, model right on {self.right[option]}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class SkipOptions:
    """What `fit_skip` draws, and what it counts as good enough.

    Attributes:
        seeds: of every prompt.
        scale: where the decision is; the last that all options leave, if None.
        skip, conditional: most scales to skip, and to run without unconditional rows.
        min_ssim, min_psnr: against the dense image, what counts as good enough; SkipVAR's classifiers were fitted
            at SSIM 0.84 to 0.88.
        fill: what stands for unconditional rows, see `Guidance`.
    """

    seeds: Sequence[int] = (0, 1, 2, 3)
    scale: int | None = None
    skip: int = 3
    conditional: int = 3
    min_ssim: float = 0.84
    min_psnr: float | None = None
    fill: Literal["copy", "delta"] = "copy"

    def __post_init__(self) -> None:
        if not 0 < self.min_ssim <= 1:
            raise OptionError(message("min_ssim", "be above 0 and at most 1", self.min_ssim))
        if self.skip < 0 or self.conditional < 0 or self.skip + self.conditional == 0:
            numbers = self.skip, self.conditional
            raise OptionError(message("skip and conditional", "be 0 or more, and one of them above", numbers))


def fit_skip(
    model: Any, prompts: Sequence[Any], options: SkipOptions | None = None, progress: Progress | None = None
) -> SkipFit:
    """Fit a logistic model per option on images of every prompt and seed: `skip_samples`, then `fit_samples`.

    Args:
        model: the model, unattached, or a `Subject` that says how to draw with it.
        prompts: of the images.
        options: see `SkipOptions`.
        progress: told of every image.

    Raises:
        OptionError: a number is out of range, or the model cannot be run so.
        CaptureError: the model is of no family whose generation can be decoded on the way.
    """
    options = options or SkipOptions()
    subject = model if isinstance(model, Subject) else as_subject(model, type(model).__name__)
    at, samples = skip_samples(subject, prompts, options, progress)
    return fit_samples(fingerprint(subject.model), at, samples, options)


def skip_samples(
    subject: Subject, prompts: Sequence[Any], options: SkipOptions, progress: Progress | None = None
) -> tuple[int, list[Sample]]:
    """The scale of the decision, and what leaving out does to images of every prompt and seed; see `fit_skip`.

    Each image is generated densely once, which also gives what skipping scales would (decoded on the way), and once
    per number of last scales without unconditional rows.
    """
    base, progress = base_plan(subject), progress or Silent()
    if not prompts or not options.seeds:
        raise OptionError(message("prompts and seeds", "give at least one image", "none"))
    scale = _decision_scale(base, options)
    pairs = list(itertools.product(prompts, options.seeds))
    samples = []
    for number, (prompt, seed) in enumerate(pairs, start=1):
        progress.step(f"image {number} of {len(pairs)}: {prompt}, seed {seed}")
        samples.append(_sample(subject, base, prompt, seed, scale, options))
    return scale, samples


def fit_samples(fingerprint: str, scale: int, samples: Sequence[Sample], options: SkipOptions) -> SkipFit:
    """Fit a logistic model per option on what `skip_samples` measured of the model with this fingerprint."""
    least_ssim, least_psnr = options.min_ssim, options.min_psnr
    accepted, right, models = {}, {}, {}
    for option in samples[0].ssim:
        good = [
            sample.ssim[option] >= least_ssim and (least_psnr is None or sample.psnr[option] >= least_psnr)
            for sample in samples
        ]
        models[option] = found = fit_logistic([sample.features for sample in samples], good)
        accepted[option] = sum(good)
        right[option] = sum(
            (found.probability(sample.features) >= 0.5) == each for sample, each in zip(samples, good, strict=True)
        )
    adapt = Adapt(
        fingerprint=fingerprint,
        scale=scale,
        skip=tuple(found for option, found in models.items() if option[0] == "skip"),
        conditional=tuple(found for option, found in models.items() if option[0] == "conditional"),
        fill=options.fill,
    )
    return SkipFit(adapt, tuple(samples), accepted, right)


def fit_logistic(images: Sequence[Sequence[float]], good: Sequence[bool]) -> Logistic:
    """Logistic regression with a ridge on the weights of standardised features, folded into their own units.

    Where all images agree there is nothing to tell apart: the model is their rate by Laplace's rule, for every image.
    """
    count, yes = len(good), sum(good)
    if yes in (0, count):
        return Logistic(bias=math.log((yes + 1) / (count - yes + 1)), weights=(0.0,) * len(FEATURES))
    x = torch.tensor(images, dtype=torch.float64)
    y = torch.tensor(good, dtype=torch.float64)
    mean, spread = x.mean(0), x.std(0, correction=0).clamp_min(1e-12)
    x = (x - mean) / spread
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = x @ parameters[1:] + parameters[0]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        value = value + RIDGE / count * parameters[1:].square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = parameters.detach()
    weights = found[1:] / spread
    bias = found[0] - (weights * mean).sum()
    return Logistic(bias=float(bias), weights=tuple(float(weight) for weight in weights))


def _decision_scale(base: Plan, options: SkipOptions) -> int:
    left = max(options.skip, options.conditional)
    most = base.scales - left
    found = most if options.scale is None else options.scale
    if not 2 <= found <= most:
        must = f"be a scale from 2 to {most}, before all {left} that may be left out"
        raise OptionError(message("scale", must, found, "decide earlier, or on fewer scales"))
    return found


def _sample(subject: Subject, base: Plan, prompt: Any, seed: int, scale: int, options: SkipOptions) -> Sample:
    last = base.scales
    wanted = {scale - 1, scale, last, *(last - count for count in range(1, options.skip + 1))}
    dense, seconds = _images(subject, base, prompt, seed, wanted)
    others: dict[Option, Tensor] = {("skip", count): dense[last - count] for count in range(1, options.skip + 1)}
    for count in range(1, options.conditional + 1):
        plan = base.replace(guidance={"conditional_from": last - count + 1, "fill": options.fill})
        others["conditional", count] = _images(subject, plan, prompt, seed, {last})[0][last]
    found = features(dense[scale - 1], dense[scale])
    return Sample(
        str(prompt),
        seed,
        tuple(found[0]),
        {option: psnr_of_mse(max(mse(image, dense[last]), LEAST_MSE)) for option, image in others.items()},
        {option: ssim(image, dense[last]) for option, image in others.items()},
        seconds,
    )


def _images(
    subject: Subject, plan: Plan, prompt: Any, seed: int, scales: set[int]
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """What is drawn after each of ``scales``, decoded, [1, 3, H, W], of one generation, and when each scale ended."""
    compile(subject.model, plan, inner="eager")
    try:
        attachment = attachment_of(subject.model)
        assert attachment is not None
        watch = _Watch(scales)
        with attachment.hooked(watch):
            subject.draw(subject.model, prompt, seed)
    finally:
        detach(subject.model)
    if set(watch.images) != scales:
        must = "call the model's own generation method, whose scales can be decoded on the way"
        raise OptionError(message("draw", must, "a generation that was not seen"))
    return watch.images, watch.ends


class _Watch(Hook):
    """Decodes after some scales, and notes when each scale ended, without the time that decoding took."""

    def __init__(self, wanted: set[int]) -> None:
        self.wanted = wanted
        self.images: dict[int, Tensor] = {}
        self.ends: dict[int, float] = {}
        self._started, self._decoding = time.perf_counter(), 0.0

    def scale_finished(self, scale: int, decode: Callable[[], Tensor]) -> None:
        now = time.perf_counter()
        self.ends[scale] = now - self._started - self._decoding
        if scale in self.wanted:
            self.images[scale] = decode().cpu().clone()
        self._decoding += time.perf_counter() - now


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
