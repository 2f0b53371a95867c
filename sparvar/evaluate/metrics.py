"""PSNR and SSIM: the one definition of each, for torch tensors and NumPy arrays alike.

Images hold values in [0, 1], so the peak of PSNR and the data range of SSIM are 1. Everything is computed in float64
with NumPy, and this module imports no torch: an artefact that runs without torch is verified with it, too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparvar.errors import OptionError, message

Array = NDArray[np.float64]

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window, and the least side of an image that has an SSIM."""
SSIM_SIGMA = 1.5
"""Standard deviation of that window, pixels."""
C1, C2 = 0.01**2, 0.03**2
"""What keeps SSIM's quotients finite where both images are black or flat: (K1 L)^2 and (K2 L)^2 at data range L = 1."""


def mse(image: Any, reference: Any) -> float:
    """Mean squared difference of two images of the same shape.

    Raises:
        OptionError: the shapes differ.
    """
    return float(np.square(np.subtract(*_pair(image, reference))).mean())


def psnr_of_mse(error: float) -> float:
    """PSNR in dB of a mean squared error at peak 1: -10 log10(error), infinite where the error is 0."""
    return -10 * math.log10(error) if error else math.inf


def psnr(image: Any, reference: Any) -> float:
    """PSNR in dB of an image in [0, 1] against its reference, over all elements; infinite where they are equal.

    Raises:
        OptionError: the shapes differ.
    """
    return psnr_of_mse(mse(image, reference))


def ssim(image: Any, reference: Any) -> float:
    """SSIM of images [..., H, W] in [0, 1], mean over pixels, channels and batch (Wang et al. 2004).

    At every pixel, with means, variances and covariance weighted by a Gaussian window of 11 x 11 pixels, sigma 1.5::

        (2 mean_a mean_b + C1) (2 cov_ab + C2) / ((mean_a^2 + mean_b^2 + C1) (var_a + var_b + C2))

    Variances are biased (mean of squares less square of the mean), and images are reflected at their borders, so that
    every pixel counts: the defaults of torchmetrics.

    Raises:
        OptionError: the shapes differ, or a side is shorter than the window.
    """
    a, b = _pair(image, reference)
    if a.ndim < 2 or min(a.shape[-2:]) < SSIM_WINDOW:
        raise OptionError(message("images", f"have sides of at least {SSIM_WINDOW} pixels for SSIM", a.shape[-2:]))
    mean_a, mean_b = _blurred(a), _blurred(b)
    aa, bb, ab = _blurred(a * a), _blurred(b * b), _blurred(a * b)
    top = (2 * mean_a * mean_b + C1) * (2 * (ab - mean_a * mean_b) + C2)
    bottom = (mean_a * mean_a + mean_b * mean_b + C1) * ((aa - mean_a * mean_a) + (bb - mean_b * mean_b) + C2)
    return float((top / bottom).mean())


def _pair(image: Any, reference: Any) -> tuple[Array, Array]:
    a, b = _array(image), _array(reference)
    if a.shape != b.shape:
        raise OptionError(message("images", "have the same shape to be compared", f"{a.shape} and {b.shape}"))
    return a, b


def _array(image: Any) -> Array:
    # NumPy has no bfloat16, and reads no tensor that is on a GPU or has a gradient.
    values = image.detach().double().cpu() if hasattr(image, "detach") else image
    return np.asarray(values, dtype=np.float64)


def _blurred(values: Array) -> Array:
    """Means weighted by the window around every pixel: by its Gaussian over rows, then over columns."""
    half = SSIM_WINDOW // 2
    weights = np.exp(-np.square(np.arange(-half, half + 1)) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (-2, -1):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (half, half)
        padded = np.pad(values, widths, mode="reflect")
        values = np.lib.stride_tricks.sliding_window_view(padded, SSIM_WINDOW, axis=axis) @ weights
    return values
