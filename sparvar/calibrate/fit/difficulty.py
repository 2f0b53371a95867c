"""How much a plan loses on other images, predicted from the dense ones: images with more detail lose more.

Plans lose detail first, and images of one model differ in how much they have. Over 20 plans of the shipped model and 14
to 43 images the PSNR of an image goes with the logarithm of its fine detail (correlation -0.73 to -0.96, median -0.86),
0.22 to 0.52 of 4.34 dB per nat. The mean magnitude says it better than the mean square (median -0.74), which a few
bright edges decide. So the mean of some images tells more of the mean of others if their detail is counted in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Side in pixels of the squares whose mean is not detail."""
PRIOR_SLOPE = -1.35
PRIOR_WEIGHT = 10.0
"""dB per nat of detail, and how much that counts beside the images: eight of the shipped model weigh 11."""
LEAST_DETAIL = 1e-4
"""Of an image of one colour."""


def log_detail(image: Tensor) -> float:
    """Twice the logarithm of the mean magnitude of what an image [..., H, W] has beside the means of its blocks."""
    side = max(1, min(BLOCK, min(image.shape[-2:]) // 2))
    height, width = (size // side * side for size in image.shape[-2:])
    whole = image[..., :height, :width].double().reshape(1, -1, height, width)
    coarse = F.interpolate(F.avg_pool2d(whole, side), scale_factor=side, mode="nearest")
    return 2 * math.log(max(float((whole - coarse).abs().mean()), LEAST_DETAIL))


def detail_gain(details: Sequence[float], psnr: Sequence[float], others: Sequence[float]) -> float:
    """PSNR in dB by which other images are expected above the mean of those that were measured, for having less detail.

    Args:
        details: `log_detail` of the images that were measured.
        psnr: of the same, dB.
        others: `log_detail` of the images that are to be run.
    """
    known, values = np.array(details), np.array(psnr)
    apart = known - known.mean()
    slope = ((apart * (values - values.mean())).sum() + PRIOR_WEIGHT * PRIOR_SLOPE) / (apart @ apart + PRIOR_WEIGHT)
    return float(slope * (np.mean(others) - known.mean()))
