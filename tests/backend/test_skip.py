"""Plans that do not draw the last scales, against the slow reference, as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparvar
from sparvar.backend import attachment_of
from sparvar.errors import CaptureError, OptionError, PlanError, SessionError
from sparvar.zoo.model import LandscapeVAR
from tests.backend.test_reductions import fields
from tests.reductions_reference import Reductions
from tests.reductions_reference import generate as slow
from tests.tiny import dense_changes, full_window_changes, tiny_model, tiny_plan

PRUNED = [(1, 2, {4: 0.6, 5: 0.5})]
CASES = {
    "alone": Reductions(skip=1),
    "two scales": Reductions(skip=2),
    "with pruning": Reductions(skip=1, source=3, spans=PRUNED),
    "with guidance": Reductions(skip=1, conditional_from=5, guidance_fill="delta"),
    "with all": Reductions(skip=1, source=3, spans=PRUNED, conditional_from=5),
}


@pytest.fixture(scope="module")
def model() -> LandscapeVAR:
    return tiny_model()


def changes(what: Reductions, base: dict[str, Any]) -> dict[str, Any]:
    return {**base, **fields(what), "skip": {"last": what.skip}}


@pytest.mark.parametrize("name", CASES)
def test_the_image_of_fewer_scales(model: LandscapeVAR, name: str) -> None:
    what = CASES[name]
    sparvar.compile(model, tiny_plan(model, **changes(what, dense_changes())), inner="eager")
    try:
        image = model.generate(["mountain"], seed=50)
        attachment = attachment_of(model)
        assert attachment is not None and attachment.generations == 1
        assert attachment.last is not None and attachment.last.finished
    finally:
        sparvar.detach(model)
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-4, atol=1e-5)


def test_sparse_attention_of_fewer_scales(model: LandscapeVAR) -> None:
    what = CASES["with all"]
    sparvar.compile(model, tiny_plan(model, **changes(what, full_window_changes())), inner="eager")
    try:
        image = model.generate(["mountain"], seed=50)
        attachment = attachment_of(model)
        assert attachment is not None and attachment.last is not None
        assert {scale for scale, _ in attachment.last.ran} == {4, 5}  # pruned, sparse
    finally:
        sparvar.detach(model)
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-3, atol=1e-4)


def test_arguments_of_the_call_count(model: LandscapeVAR) -> None:
    """Guidance, temperature, seeds per image, callbacks: those of the own generation up to the skipped scales."""
    seen: list[int] = []
    given: dict[str, Any] = {"labels": ["sea", 2], "seed": 4, "cfg": 1.0, "temperature": 0.7}
    sparvar.compile(model, tiny_plan(model, **changes(CASES["alone"], dense_changes())), inner="eager")
    try:
        image = model.generate(**given, on_scale=seen.append)
    finally:
        sparvar.detach(model)
    assert seen == [0, 1, 2, 3, 4] and image.shape == (2, 3, 32, 32)
    accumulate = model.tokenizer.accumulate
    kept: list[Tensor] = []

    def keep(total: Tensor, bits: Tensor, scale: int) -> Tensor:
        kept.append(total)
        return accumulate(total, bits, scale)

    model.tokenizer.accumulate = keep  # type: ignore[method-assign]
    try:
        model.generate(**given)
    finally:
        model.tokenizer.__dict__.pop("accumulate")
    torch.testing.assert_close(image, model.tokenizer.decode(kept[-1]).float(), rtol=1e-4, atol=1e-5)


def test_every_plan_after_another(model: LandscapeVAR) -> None:
    own = model.generate(["mountain"], seed=50)
    sparvar.compile(model, tiny_plan(model, **changes(CASES["alone"], dense_changes())), inner="eager")
    try:
        first, again = (model.generate(["mountain"], seed=50) for _ in range(2))
        with pytest.raises(ValueError, match="labels: each must be"):
            model.generate(["no such class"])
        assert torch.equal(first, again) and torch.equal(first, model.generate(["mountain"], seed=50))
    finally:
        sparvar.detach(model)
    assert torch.equal(model.generate(["mountain"], seed=50), own) and not torch.equal(own, first)


def test_a_call_that_cannot_be_mapped(model: LandscapeVAR) -> None:
    sparvar.compile(model, tiny_plan(model, **changes(CASES["alone"], dense_changes())), inner="eager")
    try:
        with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
            model.generate(["sea"], steps=3)
        with pytest.raises(OptionError, match="labels: must name at least one class"):
            model.generate([])
        with pytest.raises(PlanError, match="schedule: must be one that a plan covers"):
            model.generate(["sea"], scale_schedule=[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)])
    finally:
        sparvar.detach(model)


def test_a_model_of_no_family_is_refused_and_not_run_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparvar.models import LandscapeFamily

    model = tiny_model()
    monkeypatch.setattr(LandscapeFamily, "model_class", "SomethingElse")
    sparvar.compile(model, tiny_plan(model, **changes(CASES["alone"], dense_changes())), inner="eager")
    with pytest.raises(CaptureError, match=r"plan tiny skips scales.*must be of a known family.*got LandscapeVAR"):
        model.generate(["sea"])
    sparvar.detach(model)


def test_a_loop_of_its_own_cannot_draw_more(model: LandscapeVAR) -> None:
    """A model's own loop that gets around the wrapped method ends in an error, not in a whole generation."""
    sparvar.compile(model, tiny_plan(model, **changes(CASES["alone"], dense_changes())), inner="eager")
    try:
        with pytest.raises(SessionError, match=r"must start with the 1 tokens of scale 1.*got 64 tokens"):
            LandscapeVAR.generate(model, ["sea"])
    finally:
        sparvar.detach(model)
        for block in model.blocks:
            block.attn.kv_caching(False)  # type: ignore[operator,union-attr]


def test_an_artefact_does_not_draw_all_scales_instead(model: LandscapeVAR, tmp_path: Path) -> None:
    plan = tiny_plan(model, **changes(CASES["with guidance"], dense_changes()))
    with pytest.raises(OptionError, match=r"plan: must leave out nothing but columns.*got one with guidance, skip"):
        sparvar.export_artefact(model, plan, tmp_path / "out")


def test_through_torch_compile() -> None:
    model = tiny_model()
    what = CASES["two scales"]
    options = {"plan": tiny_plan(model, **changes(what, dense_changes())), "inner": "eager"}
    compiled: nn.Module = torch.compile(model, backend="sparvar", options=options)  # type: ignore[assignment]
    image = compiled.generate(["mountain"], seed=50)  # type: ignore[operator]
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-4, atol=1e-5)
