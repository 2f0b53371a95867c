"""Fitting what decides per image which of the last scales it needs."""

from __future__ import annotations

import pytest
import torch

import sparvar
from sparvar.backend import attachment_of
from sparvar.calibrate.fit.skip import SkipOptions, fit_logistic, fit_skip
from sparvar.errors import OptionError
from sparvar.evaluate.metrics import psnr
from sparvar.models.fingerprint import fingerprint
from sparvar.scale_plans import Plan
from tests.calibrate.progress import Lines
from tests.reductions_reference import Reductions
from tests.reductions_reference import generate as slow
from tests.tiny import dense_changes, tiny_model, tiny_plan


def test_a_fit_and_the_plan_that_it_makes() -> None:
    model = tiny_model()
    heard = Lines()
    fit = fit_skip(model, ["sea", "mountain"], SkipOptions(seeds=(0, 1), skip=2, conditional=1, min_ssim=0.6), heard)
    assert len(fit.samples) == 4 and heard.steps[-1] == "image 4 of 4: mountain, seed 1"
    assert fit.adapt.scale == 4 and fit.adapt.fingerprint == fingerprint(model)
    assert len(fit.adapt.skip) == 2 and len(fit.adapt.conditional) == 1
    assert attachment_of(model) is None
    sample = fit.samples[2]
    dense = slow(model, "mountain", 0, Reductions())
    for option, what in ((("skip", 2), Reductions(skip=2)), (("conditional", 1), Reductions(conditional_from=6))):
        assert sample.psnr[option] == pytest.approx(psnr(slow(model, "mountain", 0, what), dense), abs=0.01)  # type: ignore[index]
    assert all(option.ssim["skip", 1] >= option.ssim["skip", 2] - 0.05 for option in fit.samples)
    assert "last 1 skipped" in str(fit) and "last 1 without unconditional rows" in str(fit)

    plan = tiny_plan(model, **dense_changes(), adapt=fit.adapt)
    again = Plan.loads(plan.dumps())  # numbers in a file, nothing else
    assert again == plan
    sparvar.compile(model, again, inner="eager")
    try:
        assert model.generate(["sea"], seed=0).isfinite().all()
        attachment = attachment_of(model)
        assert attachment is not None and sum(attachment.choices.counts.values()) == 1
    finally:
        sparvar.detach(model)


def test_logistic_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64) * torch.tensor([0.01, 3.0]) + 0.5
    chance = torch.sigmoid(300 * (x[:, 0] - 0.5) - 0.5 * (x[:, 1] - 0.5) + 1)
    good = (torch.rand(400, generator=generator, dtype=torch.float64) < chance).tolist()
    found = fit_logistic(x.tolist(), good)
    said = torch.tensor([found.probability(image) for image in x.tolist()])
    assert (said - chance).abs().mean() < 0.05
    everything = fit_logistic(x.tolist(), [True] * 400)
    assert everything.weights == (0.0, 0.0) and everything.probability([0.0, 0.0]) == pytest.approx(401 / 402)
    assert fit_logistic([[0.0, 0.0]], [False]).probability([9.0, 9.0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": ()}, "prompts and seeds: must give at least one image"),
        ({"skip": 0, "conditional": 0}, "must be 0 or more, and one of them above"),
        ({"min_ssim": 1.5}, "min_ssim: must be above 0 and at most 1, got 1.5"),
        ({"scale": 5}, "scale: must be a scale from 2 to 3, before all 3 that may be left out, got 5"),
    ],
)
def test_wrong_numbers(changes: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        fit_skip(tiny_model(), ["sea"], SkipOptions(**changes))  # type: ignore[arg-type]
