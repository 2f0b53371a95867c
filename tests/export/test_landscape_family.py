"""The shipped model as programs on explicit state: the images of its own ``generate``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, OptionError
from sparvar.models import Family, LandscapeFamily, family_of
from sparvar.runtime.generation_loop import run_family
from tests.export.programs import block_sources, chain, number
from tests.tiny import SIDES, tiny_model

WIDE = tuple((side, max(side, 3 * side // 2)) for side in SIDES)


def inputs(*labels: int, cfg: float = 2.0, temperature: float = 1.0) -> dict[str, Tensor]:
    return {"labels": torch.tensor(labels), "cfg": number(cfg), "temperature": number(temperature)}


@pytest.mark.parametrize(("cfg", "temperature"), [(2.0, 1.0), (3.7, 0.6), (0.5, 1.3)])
def test_the_chain_draws_the_models_own_images(cfg: float, temperature: float) -> None:
    model = tiny_model()
    family = family_of(model, images=2)
    given = inputs(5, 3, cfg=cfg, temperature=temperature)
    own = model.generate([5, "fields"], seed=11, cfg=cfg, temperature=temperature)
    assert torch.equal(family.generate(given, 11), own)
    assert torch.equal(run_family(family, given, 11), own)
    assert torch.equal(chain(family, given, 11)[0], own)


def test_another_schedule_is_fixed_when_the_family_is_made() -> None:
    model = tiny_model()
    family = family_of(model, scale_schedule=WIDE)
    assert family.schedule == WIDE
    own = model.generate(["sea"], seed=2, scale_schedule=WIDE)
    assert own.shape[-2:] == (32, 48)
    assert torch.equal(run_family(family, inputs(6), 2), own)


def test_without_guidance_the_image_is_the_same_up_to_rounding() -> None:
    model = tiny_model()
    family = family_of(model)
    own = model.generate([4], seed=8, cfg=1.0)
    torch.testing.assert_close(run_family(family, inputs(4, cfg=1.0), 8), own, rtol=0, atol=1e-5)


def test_begin_leave_and_decode_go_through_export() -> None:
    model = tiny_model(sides=(1, 2, 4))
    family = family_of(model, images=2)
    given = inputs(1, 2, cfg=2.5)
    image, states = chain(family, given, 3, through_export=True)
    eager, expected = chain(family, given, 3)
    assert torch.equal(image, eager) and torch.equal(eager, family.generate(given, 3))
    assert [set(state) for state in states] == [set(state) for state in expected]


def test_a_block_takes_its_values_by_these_sources() -> None:
    family = family_of(tiny_model())
    assert block_sources(family, inputs(1), [1, 2]) == {*family.block_values, "L['rope']"}


def test_what_a_run_takes() -> None:
    model = tiny_model()
    family = family_of(model, images=3)
    assert isinstance(family, LandscapeFamily)
    assert (family.rows, family.prefix, family.layers) == (6, 0, 3)
    assert family.block(1) is model.blocks[1]
    assert [(item.name, item.kind, item.shape, item.dtype) for item in family.inputs] == [
        ("labels", "class", (3,), "int64"),
        ("cfg", "number", (), "float64"),
        ("temperature", "number", (), "float64"),
    ]
    assert family.inputs[0].classes[5] == "mountain"
    assert [(noise.scale, noise.shape) for noise in family.noise][:2] == [(1, (3, 1, 8)), (2, (3, 4, 8))]


def test_an_image_of_a_batch_does_not_depend_on_the_batch() -> None:
    one, two = (family_of(tiny_model(), images=images) for images in (1, 2))
    alone, both = one.draw(5)["noise/3"], two.draw(4)["noise/3"]
    assert torch.equal(both[1:], alone) and not torch.equal(both[:1], alone)


class Headless(nn.Module):
    pass


def test_a_model_of_no_family_is_refused_with_the_families_there_are() -> None:
    with pytest.raises(CaptureError, match=r"known family: .*landscape \(LandscapeVAR\).*got Headless; subclass"):
        family_of(Headless())


def test_a_model_that_lacks_something_is_refused_with_what() -> None:
    class LandscapeVAR(nn.Module):
        tokenizer, classes = None, ()

    with pytest.raises(CaptureError, match=r"landscape family, LandscapeVAR: .*none of blocks, condition,"):
        family_of(LandscapeVAR())


def test_a_family_of_a_derived_class_is_found() -> None:
    model = tiny_model()
    model.__class__ = type("Mine", (type(model),), {})
    assert isinstance(family_of(model), Family)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scale_schedule": [(1, 1), (2, 2)]}, "must have 6 grids"),
        ({"scale_schedule": [(1, 1), (3, 3), (2, 2), (4, 4), (6, 6), (8, 8)]}, "scale 3: must be at least 3x3"),
        ({"scale_schedule": [(1, 1), (2,), (3, 3), (4, 4), (6, 6), (8, 8)]}, "scale 2: must be two whole numbers"),
        ({"schedule": [(1, 1)]}, "must be among scale_schedule, guided, got schedule"),
        ({"images": 0}, "images: must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        family_of(tiny_model(), **settings)  # type: ignore[arg-type]
