"""How a calibration is run, beside the budget that its plan must keep to."""

from __future__ import annotations

from dataclasses import dataclass

from sparvar.calibrate.budget import Budget, Effort
from sparvar.errors import OptionError, message


@dataclass(frozen=True)
class CalibrationOptions:
    """Settings of `sparvar.calibrate`.

    Attributes:
        seed: of everything random; the same seed and cost table give the same plan for a budget without seconds.
        inner: compiler of the plans that are timed; "auto" is "inductor", or "eager" on a processor, where compiling
            takes minutes and memory and saves dense images 1 % and fast plans about 9 %.
        effort: generations per step; None chooses the most that ten minutes allow, by what a dense image takes.
        images: that check a plan, and as many held out, in place of the effort's.
        target: name of a GPU: seconds are then those of its roofline, predicted and not measured.
        resume: go on with the journal of a run that was stopped.
        reduce: tokens and unconditional rows may be left out, too; not with ``target`` or a budget of attention's
            error, which say nothing of them.
        skip: with ``reduce``, the last scales may be skipped, too. It saves most, and softens images more
            than PSNR says.
        per_image: the plan may leave out, image by image, last scales that a logistic model of two image features says
            are not needed; needs a budget of PSNR or SSIM.
        seconds_in_all: stop with an error, to be resumed, when this time is used up.
    """

    seed: int = 0
    inner: str = "auto"
    effort: Effort | None = None
    images: int | None = None
    target: str | None = None
    resume: bool = False
    reduce: bool = True
    skip: bool = False
    per_image: bool = False
    seconds_in_all: float | None = None

    def check(self, budget: Budget) -> None:
        """Raise `OptionError` where a setting asks for what a budget, or another setting, rules out."""
        if self.per_image and not budget.bounds_images:
            must = "be asked with --min-psnr or --min-ssim, which say what an image needs"
            raise OptionError(message("--per-image", must, "neither"))
        if self.skip and (not self.reduce or self.target is not None or budget.max_error is not None):
            must = "be asked where calibration may leave out more than columns"
            given = "--columns-only" if not self.reduce else "--target" if self.target is not None else "--max-error"
            raise OptionError(message("--skip-scales", must, given, f"take {given} out"))
