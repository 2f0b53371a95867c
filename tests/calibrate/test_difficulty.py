"""How hard images are, and what is expected of others."""

from __future__ import annotations

import math

import pytest
import torch

from sparvar.calibrate.fit.difficulty import PRIOR_SLOPE, PRIOR_WEIGHT, detail_gain, log_detail


def test_detail_is_what_squares_of_pixels_do_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 5, 7, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = 0.1 * torch.randn(blocks.shape, generator=generator)
    assert log_detail(blocks) == pytest.approx(math.log(1e-8))
    # Of 64 pixels in a square one degree of freedom goes into its mean; of a Gaussian's variance 2 / pi is in its mean
    # magnitude.
    assert log_detail(blocks + noise) == pytest.approx(math.log(0.01 * 63 / 64 * 2 / math.pi), abs=0.05)
    assert log_detail(blocks + 2 * noise) - log_detail(blocks + noise) == pytest.approx(2 * math.log(2), abs=1e-3)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 24, 17), (3, 1, 5), (3, 2, 2)])
def test_images_of_any_size_have_a_detail(shape: tuple[int, ...]) -> None:
    assert math.isfinite(log_detail(torch.rand(shape, generator=torch.Generator().manual_seed(1))))


def test_expectation_follows_the_images_and_the_prior() -> None:
    details = [-5.0, -4.0, -3.5, -3.0]
    as_prior = [30 + PRIOR_SLOPE * value for value in details]
    assert detail_gain(details, as_prior, [-2.0]) == pytest.approx(PRIOR_SLOPE * (-2.0 + 3.875))
    assert detail_gain(details, as_prior, details) == pytest.approx(0)
    # Images that tell another slope pull it towards theirs, the more the more they differ.
    spread = sum((value + 3.875) ** 2 for value in details)
    steep = [30 - 3 * value for value in details]
    found = detail_gain(details, steep, [-2.875])
    assert found == pytest.approx((-3 * spread + PRIOR_WEIGHT * PRIOR_SLOPE) / (spread + PRIOR_WEIGHT))


def test_one_image_leaves_the_prior() -> None:
    assert detail_gain([-4.0], [31.0], [-5.0, -5.0]) == pytest.approx(-PRIOR_SLOPE)
