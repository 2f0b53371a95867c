"""PSNR and SSIM against torchmetrics."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sparvar.errors import OptionError
from sparvar.evaluate.metrics import mse, psnr, psnr_of_mse, ssim


def images(*shape: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """An image with smooth and flat parts, and the same with noise."""
    generator = torch.Generator().manual_seed(shape[-1])
    place = torch.linspace(0, 12, shape[-1])
    image = (0.5 + 0.5 * torch.sin(place + place[: shape[-2], None] ** 1.5)).expand(shape).clone()
    image[..., : shape[-2] // 3, :] = 0.25
    other = (image + noise * torch.randn(shape, generator=generator)).clamp(0, 1)
    return other, image


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 3, 64, 64), (1, 1, 11, 11)])
@pytest.mark.parametrize("noise", [0.3, 0.02, 1e-4])
def test_both_are_those_of_torchmetrics(shape: tuple[int, ...], noise: float) -> None:
    pair = images(*shape, noise=noise)
    batches = [part.reshape(-1, *part.shape[-3:]).double() for part in pair]
    theirs = peak_signal_noise_ratio(*batches, data_range=1.0)
    assert psnr(*pair) == pytest.approx(float(theirs), abs=1e-5)
    theirs = structural_similarity_index_measure(*batches, data_range=1.0)
    assert ssim(*pair) == pytest.approx(float(theirs), abs=1e-6)


def test_known_values() -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-4)  # 10 log10(1 / 0.01)
    assert psnr_of_mse(1e-3) == pytest.approx(30) and psnr_of_mse(0.0) == math.inf
    # A flat image against a flat one: no variance, so that the quotient of the means is all.
    assert ssim(np.full((16, 16), 0.5), np.full((16, 16), 0.25)) == pytest.approx(0.2501 / 0.3126)


def test_equal_images() -> None:
    other, image = images(3, 24, 40)
    assert (mse(image, image.clone()), psnr(image, image), ssim(image, image.clone())) == (0, math.inf, 1)
    assert 0 < ssim(other, image) < 1


def test_tensors_and_arrays_of_any_dtype_mix() -> None:
    other, image = images(3, 24, 40)
    assert ssim(other.numpy(), image.requires_grad_()) == ssim(other, image.detach())
    half = image.detach().bfloat16()
    assert psnr(half, half.float().numpy()) == math.inf


def test_images_that_cannot_be_compared() -> None:
    other, image = images(3, 24, 40)
    with pytest.raises(OptionError, match=r"images: must have the same shape .* \(3, 24, 40\) and \(1, 3, 24, 40\)"):
        psnr(other, image[None])
    with pytest.raises(OptionError, match=r"images: must have sides of at least 11 pixels for SSIM, got \(24, 10\)"):
        ssim(other[..., :10], image[..., :10])


def test_no_torch_is_needed() -> None:
    code = "import sys, sparvar.evaluate.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
