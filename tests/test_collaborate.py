"""Two models that draw one image, as a user runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparvar
from sparvar.backend import attachment_of
from sparvar.errors import CaptureError, OptionError
from sparvar.scale_plans import Plan
from sparvar.zoo.model import LandscapeVAR
from tests.tiny import dense_changes, full_window_changes, plan_fields, tiny_model, tiny_plan

GIVEN: dict[str, Any] = {"labels": ["mountain", 3], "seed": 50, "cfg": 2.0}


def small_model() -> LandscapeVAR:
    """Half as wide and less deep, with the tokenizer of `tiny_model`."""
    tokenizer = tiny_model().tokenizer
    torch.manual_seed(7)
    model = LandscapeVAR(tokenizer, width=64, depth=2, heads=1)
    with torch.no_grad():
        for parameter in [each for name, each in model.named_parameters() if not name.startswith("tokenizer")]:
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def large() -> LandscapeVAR:
    return tiny_model()


@pytest.fixture
def small() -> Iterator[LandscapeVAR]:
    model = small_model()
    yield model
    sparvar.detach(model)


def small_plan(model: LandscapeVAR, changes: dict[str, Any]) -> Plan:
    fields = plan_fields(model)
    return Plan.model_validate({**fields, "model": {**fields["model"], "heads": 1}, **changes}).require()


@torch.inference_mode()
def by_hand(
    large: LandscapeVAR, small: LandscapeVAR, handover: int, labels: list[Any], seed: int, cfg: float
) -> Tensor:
    """The same with teacher forcing at every scale and no cache: CoDe's one masked pass, done again for each scale."""
    index = torch.tensor([large.class_index(label) for label in labels])
    both = torch.cat((index, torch.full_like(index, len(large.classes))))
    generators = [torch.Generator().manual_seed(seed + image) for image in range(len(labels))]
    total = torch.zeros(len(labels), large.tokenizer.dim, *large.schedule[-1])
    levels: list[Tensor] = []
    for scale, grid in enumerate(large.schedule):
        level = large.tokenizer.grow(total, grid)
        levels.append(torch.cat((level, level)))
        model = large if scale < handover else small
        given, free = model(both, levels)[-1].chunk(2)
        logits = (free + model.scale_guidance(scale, cfg) * (given - free)).flatten(2).transpose(1, 2)
        noise = torch.stack([torch.rand(grid[0] * grid[1], large.tokenizer.dim, generator=each) for each in generators])
        bits = (noise < torch.sigmoid(logits / model.scale_temperature(scale, 1.0))).to(total.dtype)
        total = large.tokenizer.accumulate(total, bits.transpose(1, 2).unflatten(2, grid), scale)
    return large.tokenizer.decode(total).float()


@pytest.mark.parametrize("handover", [1, 3, 5])
def test_a_large_and_a_small_model(large: LandscapeVAR, small: LandscapeVAR, handover: int) -> None:
    image = sparvar.collaborate(large, small, handover=handover)(**GIVEN)
    torch.testing.assert_close(image, by_hand(large, small, handover, **GIVEN), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(image, large.generate(**GIVEN), atol=1e-3)
    assert not torch.allclose(image, small.generate(**GIVEN), atol=1e-3)


@pytest.mark.parametrize("handover", [1, 4])
def test_a_model_with_itself_draws_its_own_images(large: LandscapeVAR, handover: int) -> None:
    seen: list[int] = []
    image = sparvar.collaborate(large, large, handover=handover)(["mountain", 3], 50, on_scale=seen.append)
    assert torch.equal(image, large.generate(["mountain", 3], 50)) and seen == [0, 1, 2, 3, 4, 5]
    unguided = sparvar.collaborate(large, tiny_model(), handover=handover)(["sea"], cfg=1.0, temperature=0.5)
    assert torch.equal(unguided, large.generate(["sea"], cfg=1.0, temperature=0.5))


def test_attached_with_plans_of_their_own(large: LandscapeVAR, small: LandscapeVAR) -> None:
    """Sparse columns that hold every key give what dense attention gives; the small one's plan ends early."""
    changes = full_window_changes(layers=2)
    plan = small_plan(small, {**changes, "skip": {"last": 1}})
    sparvar.compile(small, plan, inner="eager")
    drafter = tiny_plan(large, **{**full_window_changes(), "csla": {3: {"windows": {1: 1, 2: 3, 3: 5}}}})
    sparvar.compile(large, drafter, inner="eager")
    try:
        image = sparvar.collaborate(large, small, handover=4)(**GIVEN)
        attachment = attachment_of(small)
        assert attachment is not None and attachment.generations == 1 and attachment.last is not None
        assert attachment.last.ran == {(5, 0): "sparse", (5, 1): "sparse"}
        again = large.generate(**GIVEN)
    finally:
        sparvar.detach(large)
        sparvar.detach(small)
    torch.testing.assert_close(again, large.generate(**GIVEN), rtol=1e-3, atol=1e-4)
    skipped = small_plan(small, {**dense_changes(2), "skip": {"last": 1}})
    sparvar.compile(small, skipped, inner="eager")
    expected = sparvar.collaborate(large, small, handover=4)(**GIVEN)
    torch.testing.assert_close(image, expected, rtol=1e-3, atol=1e-4)


def test_refusals(large: LandscapeVAR, small: LandscapeVAR) -> None:
    with pytest.raises(OptionError, match="handover: must be a scale, 1 or above, got 0"):
        sparvar.collaborate(large, small, handover=0)
    with pytest.raises(OptionError, match="handover: must be a scale before the last, at most 5, got 6"):
        sparvar.collaborate(large, small, handover=6)(["sea"])
    with pytest.raises(CaptureError, match=r"model Linear: must have a generation method"):
        sparvar.collaborate(large, nn.Linear(2, 2))
    other = tiny_model((1, 2, 4))
    says = "got 6 scales to 8x8 and 3 scales to 4x4; a drafter must share its refiner's schedule and tokenizer"
    with pytest.raises(CaptureError, match=says):
        sparvar.collaborate(large, other, handover=2)(["sea"])
    plan = small_plan(small, {**dense_changes(2), "skip": {"last": 3}})
    sparvar.compile(small, plan, inner="eager")
    with pytest.raises(OptionError, match="plan tiny of the small model: must draw at least scale 4"):
        sparvar.collaborate(large, small, handover=4)(["sea"])
