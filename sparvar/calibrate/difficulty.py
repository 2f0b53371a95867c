"""How hard images are for a plan, told from the model's own images: what is detailed loses more.

Plans lose detail first, and images of one model differ in how much they have. Over 15 plans of the shipped model and 16
images the PSNR of an image goes with the logarithm of its fine detail (correlation -0.57 to -0.89, median -0.7), 0.17
to 0.48 of 4.34 dB per nat. So the mean of some images tells more of the mean of others if their detail is counted in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Side in pixels of the squares whose mean is not detail."""
PRIOR_SLOPE = -1.3
PRIOR_WEIGHT = 10.0
"""dB per nat of detail, and how much that counts beside the images: eight of the shipped model weigh 12."""
LEAST_DETAIL = 1e-8
"""Of an image of one colour."""


def detail(image: Tensor) -> float:
    """Natural logarithm of the mean square of what an image [..., H, W] has beside the means of squares of pixels."""
    side = max(1, min(BLOCK, min(image.shape[-2:]) // 2))
    height, width = (size // side * side for size in image.shape[-2:])
    whole = image[..., :height, :width].double().reshape(1, -1, height, width)
    coarse = F.interpolate(F.avg_pool2d(whole, side), scale_factor=side, mode="nearest")
    return math.log(max(float((whole - coarse).square().mean()), LEAST_DETAIL))


def easier(details: Sequence[float], psnr: Sequence[float], others: Sequence[float]) -> float:
    """dB by which other images are expected above the mean of those that were measured.

    Args:
        details: of the images that were measured.
        psnr: of the same, dB.
        others: details of the images that are to be run.
    """
    known, values = np.array(details), np.array(psnr)
    apart = known - known.mean()
    slope = ((apart * (values - values.mean())).sum() + PRIOR_WEIGHT * PRIOR_SLOPE) / (apart @ apart + PRIOR_WEIGHT)
    return float(slope * (np.mean(others) - known.mean()))


__all__ = ["detail", "easier"]
