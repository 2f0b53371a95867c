"""SSIM told from PSNR: a line through the images that were measured so far."""

from __future__ import annotations

import math
import statistics

from sparvar.calibrate.measure.measured import LEAST_MSE
from sparvar.errors import OptionError, message
from sparvar.evaluate.metrics import SSIM_WINDOW, psnr_of_mse


class SsimLine:
    """log(1 - SSIM) as a linear function of PSNR in dB.

    Plans are solved for an image MSE: a budget of SSIM becomes one of PSNR by this line.
    """

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, mse: float, ssim: float | None) -> None:
        """Count an image in, unless it equals the dense one or its SSIM was not measured."""
        if ssim is not None and mse > LEAST_MSE and ssim < 1:
            self._points.append((psnr_of_mse(mse), math.log(1 - ssim)))

    def fit(self) -> tuple[float, float]:
        """Slope, below 0, and offset.

        Raises:
            OptionError: SSIM of fewer than two images is known.
        """
        if len(self._points) < 2:
            must = f"be asked of images [3, H, W] of at least {SSIM_WINDOW} a side"
            raise OptionError(message("--min-ssim", must, "none", "give --min-psnr"))
        slope, offset = statistics.linear_regression(*zip(*self._points, strict=True))
        return min(slope, -1e-3), offset
