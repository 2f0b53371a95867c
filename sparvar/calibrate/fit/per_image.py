"""The last step of a calibration that may choose per image: scales that some images do not need (SkipVAR)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.calibrate.fit.skip import Option, fit_logistic
from sparvar.calibrate.measure.measured import LEAST_MSE
from sparvar.calibrate.measure.runner import Runner
from sparvar.errors import OptionError, message
from sparvar.evaluate.metrics import mse, psnr_of_mse, ssim
from sparvar.runtime.choices import features
from sparvar.scale_plans import FEATURES, Adapt, Plan, decide

MOST = 3
"""Last scales that an image may do without."""


@dataclass(frozen=True)
class PerImage:
    """What was fitted to the images of one plan.

    Attributes:
        plan: the plan with its choice; None where no image may do without a scale, or the plan leaves no choice.
        record: for ``calibration.json``.
    """

    plan: Plan | None
    record: dict[str, Any]


def most_skipped(plan: Plan) -> int:
    """How many of the last scales an image may do without under a plan, by the rules of `sparvar.scale_plans`."""
    if plan.skip is not None:
        return 0
    first = max(
        plan.decision_scale or 0,
        plan.guidance.conditional_from - 1 if plan.guidance is not None else 0,
        2,
    )
    return max(min(MOST, plan.scales - first - 1), 0)


def fit_per_image(runner: Runner, plan: Plan, count: int, min_psnr: float | None, min_ssim: float | None) -> PerImage:
    """A logistic model per number of skipped scales, fitted on ``count`` images of the plan itself.

    An image may do without scales where what is drawn before them is within the budget of the dense image.

    Args:
        runner: draws.
        plan: the plan that meets the budget without a choice.
        count: images, those of stage ``check``.
        min_psnr, min_ssim: the budget; one of them at least.

    Raises:
        CaptureError: the model's images cannot be decoded before its last scale.
        OptionError: a generation makes several images.
    """
    most = most_skipped(plan)
    if not most:
        return PerImage(
            None, {"why": "the plan decides, skips scales, or drops guidance too late for an image to skip a scale"}
        )
    at = plan.scales - most
    options: list[Option] = [("skip", number) for number in range(1, most + 1)]
    samples = []
    for number in range(count):
        runner.progress.step(f"which scales images need: {number + 1} of {count}")
        samples.append(_sample(runner, plan, number, at, most, min_ssim is not None))
    good = [
        [
            (min_psnr is None or each["psnr"][number - 1] >= min_psnr)
            and (min_ssim is None or each["ssim"][number - 1] >= min_ssim)
            for each in samples
        ]
        for _, number in options
    ]
    fitted = Adapt(
        fingerprint=plan.model.fingerprint,
        scale=at,
        skip=tuple(fit_logistic([each["features"] for each in samples], answers) for answers in good),
    )
    skipped = [decide(fitted, [each["features"]])[0] for each in samples]
    record = {
        "features": list(FEATURES),
        "scale": at,
        "images": samples,
        "good_enough": [sum(answers) for answers in good],
        "skipped": skipped,
    }
    if not any(skipped):
        return PerImage(None, {**record, "why": "no image may do without its last scale within the budget"})
    return PerImage(plan.replace(name=f"{plan.name}-per-image", adapt=fitted), record)


def _sample(runner: Runner, plan: Plan, number: int, at: int, most: int, with_ssim: bool) -> dict[str, Any]:
    last = plan.scales
    reference = runner.images.dense("check", number)

    def measure() -> dict[str, Any]:
        scales = {at - 1, *range(at, last)}
        seen = runner.decoded_scales(plan, "check", number, scales)
        if len(seen[at]) != 1:
            raise OptionError(message("draw", "make one image where each is to be chosen for", f"{len(seen[at])}"))
        whole = reference.reshape(seen[at].shape)
        drawn: Sequence[Any] = [seen[last - count] for count in range(1, most + 1)]
        return {
            "features": features(seen[at - 1], seen[at])[0],
            "psnr": [psnr_of_mse(max(mse(image, whole), LEAST_MSE)) for image in drawn],
            "ssim": [ssim(image, whole) for image in drawn] if with_ssim else [],
        }

    found: dict[str, Any] = runner.journal.get(
        f"per image/{plan.digest}/{number}/{at}{'/ssim' if with_ssim else ''}", measure
    )
    return found
