"""What a calibration is asked for, and how many generations it may spend on each step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from sparvar.errors import OptionError, message


@dataclass(frozen=True)
class Budget:
    """What a plan must keep to; at least one.

    Attributes:
        min_psnr: least mean PSNR against dense images, dB.
        min_ssim: least mean SSIM against dense images, below 1.
        max_error: largest relative error of a site's attention output, root of squares over heads, queries, channels.
        max_seconds: most median seconds of an image.
        max_kv: most of the KV cache's bytes that are held between two scales, as a share of the whole cache; a bound,
            not a budget of its own.
    """

    min_psnr: float | None = None
    max_seconds: float | None = None
    min_ssim: float | None = None
    max_error: float | None = None
    max_kv: float | None = None

    def __post_init__(self) -> None:
        stated = dataclasses.asdict(self)
        share = stated.pop("max_kv")
        if share is not None and not 0 < share < 1:
            raise OptionError(message("--max-kv", "be above 0 and below 1", share, "an eighth is 0.125"))
        if share is not None and self.max_error is not None:
            must = "be asked without --max-error, which compares with attention over the whole cache"
            raise OptionError(message("--max-kv", must, "both", "give --min-psnr or --min-ssim"))
        if all(value is None for value in stated.values()):
            options = "--min-psnr, --min-ssim, --max-error or --max-seconds"
            raise OptionError(message("budget", "be stated", "none", f"give {options}, or several of them"))
        for name, value in stated.items():
            option = f"--{name.replace('_', '-')}"
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(message(option, "be a finite number above 0", value))
            if value is not None and value >= 1 and name in ("min_ssim", "max_error"):
                remedy = "sparse attention changes every image" if name == "min_ssim" else "2 % is 0.02"
                raise OptionError(message(option, "be below 1", value, remedy))

    @property
    def bounds_images(self) -> bool:
        """Whether images are compared: a budget of PSNR or SSIM."""
        return self.min_psnr is not None or self.min_ssim is not None


LEAST_IMAGES, MOST_IMAGES = 3, 8
TEN_MINUTES = 600.0
THOROUGH = 76
"""Dense images' time that a thorough search takes."""
COARSE, COARSE_IMAGE = 16.5, 3.5
"""Dense images' time that a coarse search takes without images that check and are held out, and for each of these."""


@dataclass(frozen=True)
class Effort:
    """Generations of every step.

    ``fine`` is whether layers, pruning of two scales together and the shipped plan are measured, too.
    """

    observed: int = 2
    probes: int = 1
    checks: int = MOST_IMAGES
    held_out: int = MOST_IMAGES
    rounds: int = 4
    fine: bool = True

    @classmethod
    def quick(cls, images: int = LEAST_IMAGES) -> Effort:
        """A coarse search: fewer images leave a wider margin above the budget, and so a slower plan."""
        return cls(observed=1, checks=images, held_out=images, rounds=2, fine=False)

    @classmethod
    def thorough(cls) -> Effort:
        """The finest search."""
        return cls()

    @classmethod
    def within(cls, dense_seconds: float, seconds: float = TEN_MINUTES) -> Effort:
        """The most that ``seconds`` allow for a model of which a dense image takes ``dense_seconds``; at least `quick`.

        A calibration takes as long as so many dense images: measured on the shipped model, 76 thoroughly, 27 coarsely
        with three images, where each more is a dense image for the checks, one held out, and three plans on them.
        """
        images = seconds / dense_seconds
        if images >= THOROUGH:
            return cls.thorough()
        return cls.quick(max(LEAST_IMAGES, min(MOST_IMAGES, int((images - COARSE) / COARSE_IMAGE))))

    def with_images(self, images: int) -> Effort:
        """The same with so many images that check, and as many held out."""
        return dataclasses.replace(self, checks=images, held_out=images)
