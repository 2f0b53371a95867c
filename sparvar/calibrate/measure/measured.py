"""What generations of one plan gave: error of the images, seconds and SSIM."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparvar.evaluate.metrics import psnr_of_mse

LEAST_MSE = 1e-10
"""Images that are equal count as 100 dB."""


@dataclass(frozen=True)
class Measured:
    """Generations of one plan, each against the dense image of the same prompt and seed.

    Attributes:
        mse: mean squared error of every image, whose values lie in [0, 1].
        seconds: of every generation in which nothing was compiled.
        ssim: of every image; empty where it was not measured.
        scale_seconds: seconds of all sites together per scale, median over generations; empty where they were not
            timed.
    """

    mse: tuple[float, ...]
    seconds: tuple[float, ...]
    ssim: tuple[float, ...] = ()
    scale_seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def psnr(self) -> list[float]:
        """PSNR of every image, dB."""
        return [psnr_of_mse(value) for value in self.mse]

    @property
    def mean_psnr(self) -> float:
        """Mean of dB, the figure that budgets are about."""
        return statistics.mean(self.psnr)

    @property
    def mean_ssim(self) -> float | None:
        """Mean SSIM, or None where it was not measured."""
        return statistics.mean(self.ssim) if self.ssim else None

    @property
    def image_mse(self) -> float:
        """Geometric mean of the MSE: the MSE whose PSNR is the mean PSNR, as the solver predicts it."""
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
            **({"ssim": list(self.ssim), "ssim_mean": self.mean_ssim} if self.ssim else {}),
            "seconds": list(self.seconds),
            "seconds_median": self.median_seconds,
        }


def aggregate(records: Sequence[dict[str, Any]]) -> Measured:
    """One `Measured` of the journal's records of several generations, see `Runner.record`."""
    ssim = [record["ssim"] for record in records]
    scales = set.intersection(*({int(scale) for scale in record["took"]} for record in records))
    return Measured(
        tuple(record["mse"] for record in records),
        tuple(record["seconds"] for record in records if record["seconds"] is not None),
        tuple(value for value in ssim if value is not None) if None not in ssim else (),
        {scale: statistics.median(record["took"][str(scale)] for record in records) for scale in sorted(scales)},
    )
