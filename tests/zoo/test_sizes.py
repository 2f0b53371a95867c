"""The model at other sizes and ratios than its own."""

from __future__ import annotations

import pytest
import torch

import sparvar
from sparvar.scale_plans import transferable
from sparvar.zoo.transformer import rope_table
from tests.tiny import SIDES, generate, tiny_model, tiny_plan

WIDE = ((1, 1), (2, 3), (3, 4), (4, 6), (5, 9), (6, 12))
TALL = tuple((w, h) for h, w in WIDE)
SQUARE = tuple((side, side) for side in SIDES)


def test_the_image_has_the_last_grid_s_shape() -> None:
    model = tiny_model()
    wide, tall = generate(model, scale_schedule=WIDE), generate(model, scale_schedule=list(TALL))
    assert wide.shape == (2, 3, 24, 48) and tall.shape == (2, 3, 48, 24)
    assert wide.dtype == torch.float32 and wide.min() >= 0 and wide.max() <= 1
    assert torch.equal(wide, generate(model, scale_schedule=WIDE))
    assert not torch.equal(wide.transpose(2, 3), tall)


def test_its_own_schedule_by_name_changes_nothing() -> None:
    model = tiny_model()
    plain = generate(model)
    generate(model, scale_schedule=WIDE)
    assert torch.equal(generate(model, scale_schedule=SQUARE), plain)
    assert torch.equal(generate(model), plain)


def test_square_images_are_those_of_before() -> None:
    """Every fourth pixel of a row that the model drew when it knew squares alone."""
    row = generate(tiny_model())[0, 0, 8, ::8]
    torch.testing.assert_close(row, torch.tensor([0.4925, 0.1343, 0.3753, 1.0000]), rtol=0, atol=1e-3)


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = tiny_model()
    both = generate(model, scale_schedule=WIDE)
    alone = generate(model, labels=[3], seed=4, scale_schedule=WIDE)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)


def test_rotations_follow_the_axes() -> None:
    """Half of the pairs turn with y alone and half with x alone; a square's table is that of its side."""
    table = rope_table((2, 3), 16, (4.0, 6.0)).unflatten(1, (2, 3))
    rows, columns = table.split(4, dim=-1)
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert torch.equal(columns, columns[:, :1].expand_as(columns))
    # Cell centres in cells of the last grid: 1 and 3 down, 1, 3 and 5 across, at the first frequency, 1.
    torch.testing.assert_close(rows[0, :, 0, 0], torch.tensor([1.0, 3.0]).cos())
    torch.testing.assert_close(columns[1, 0, :, 0], torch.tensor([1.0, 3.0, 5.0]).sin())


def test_a_transposed_schedule_of_the_same_lengths_is_not_confused() -> None:
    model = tiny_model()
    fresh = generate(tiny_model(), scale_schedule=TALL)
    generate(model, scale_schedule=WIDE)
    assert torch.equal(generate(model, scale_schedule=TALL), fresh)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (WIDE[1:], r"must have 6 grids \(h, w\), one per scale of the model, got 5"),
        ((), "must have 6 grids"),
        ((*WIDE[:-1], (4, 12)), "scale 6: must be at least 5x9 in both axes, as the scale before it, got 4x12"),
        (((0, 1), *WIDE[1:]), r"scale 1: must be two whole numbers above 0 \(h, w\), got \(0, 1\)"),
        (((1, 1, 1), *WIDE[1:]), "scale 1: must be two whole numbers"),
        ((*WIDE[:-1], (6.0, 12.0)), "scale 6: must be two whole numbers"),
    ],
)
def test_a_schedule_that_it_cannot_draw(schedule: object, says: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=says):
        generate(model, scale_schedule=schedule)
    generate(model)


@pytest.mark.slow
def test_one_carried_plan_serves_every_size() -> None:
    model = tiny_model()
    dense = {schedule: generate(model, scale_schedule=schedule) for schedule in (WIDE, TALL, SQUARE)}
    plan = tiny_plan(model)
    sparvar.compile(model, transferable(plan), inner="eager")
    attachment = sparvar.attachment_of(model)
    assert attachment is not None
    for schedule, image in dense.items():
        sparse = generate(model, scale_schedule=schedule)
        assert attachment.plan.schedule == schedule
        assert sparse.shape == image.shape and not torch.equal(sparse, image)
        assert attachment.last is not None and attachment.last.ran[6, 1] == attachment.last.ran[6, 2] == "sparse"
    assert attachment.plan == plan
    sparvar.detach(model)
