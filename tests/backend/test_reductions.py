"""Tokens and rows that a plan leaves out, against a slow reference of the papers' formulas, as a user runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.errors import SessionError
from sparvar.zoo.model import LandscapeVAR
from tests.reductions_reference import Reductions
from tests.reductions_reference import generate as slow
from tests.tiny import dense_changes, full_window_changes, tiny_model, tiny_plan

SPANS = [(0, 2, {4: 0.7, 5: 0.5, 6: 0.3})]
CASES: dict[str, Reductions] = {
    **{
        f"{score} {fill}": Reductions(score=score, fill=fill, source=3, spans=SPANS)
        for score in ("pivot", "entropy", "change")
        for fill in ("input", "output", "previous", "delta")
    },
    "change anchor": Reductions(score="change", fill="anchor", source=4, spans=[(0, 2, {6: 0.5})]),
    "tome merge": Reductions(score="tome", fill="merge", source=4, spans=[(0, 2, {5: 0.5, 6: 0.4})]),
    "pitome merge": Reductions(score="pitome", fill="merge", source=4, spans=[(0, 2, {6: 0.4})]),
    "two spans": Reductions(source=4, fill="output", spans=[(0, 0, {6: 0.5}), (2, 2, {6: 0.25})]),
    "previous behind two spans": Reductions(
        source=3, fill="previous", spans=[(0, 0, {4: 0.4, 6: 0.5}), (2, 2, {6: 0.25})]
    ),
    "previous without unconditional rows": Reductions(
        source=3, fill="previous", spans=[(0, 1, {4: 0.6, 5: 0.5, 6: 0.3})], conditional_from=6
    ),
    "a hole before a whole scale": Reductions(source=3, spans=[(1, 2, {5: 0.4})]),
    "conditional, copied": Reductions(conditional_from=6),
    "conditional, with the difference before": Reductions(conditional_from=5, guidance_fill="delta"),
    "both": Reductions(source=3, spans=[(1, 2, {5: 0.5, 6: 0.3})], conditional_from=5, guidance_fill="delta"),
}


def fields(what: Reductions) -> dict[str, Any]:
    """The fields of a plan that leaves the same out."""
    found: dict[str, Any] = {}
    if what.spans:
        spans = [{"first": first, "last": last, "keep": dict(keep)} for first, last, keep in what.spans]
        found["pruning"] = {"score": what.score, "fill": what.fill, "source": what.source, "spans": spans}
    if what.conditional_from:
        found["guidance"] = {"conditional_from": what.conditional_from, "fill": what.guidance_fill}
    return found


def drawn(model: LandscapeVAR, changes: dict[str, Any], **options: Any) -> Tensor:
    sparvar.compile(model, tiny_plan(model, **changes), **options)
    try:
        return model.generate(["mountain"], seed=50)
    finally:
        sparvar.detach(model)


@pytest.fixture(scope="module")
def model() -> LandscapeVAR:
    return tiny_model()


@pytest.mark.parametrize("name", CASES)
def test_dense_attention_of_what_is_left(model: LandscapeVAR, name: str) -> None:
    what = CASES[name]
    image = drawn(model, {**dense_changes(), **fields(what)}, inner="eager")
    assert not torch.allclose(image, model.generate(["mountain"], seed=50), atol=1e-3), "nothing was left out"
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pivot delta", "two spans", "a hole before a whole scale", "both"])
def test_sparse_lists_that_hold_every_key(model: LandscapeVAR, name: str) -> None:
    """Windows over everything: the sparse path, its order of queries and its holes, must give dense attention."""
    what = CASES[name]
    image = drawn(model, {**full_window_changes(), **fields(what)}, inner="eager")
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-3, atol=1e-4)


def test_mapped_columns_of_kept_tokens(model: LandscapeVAR) -> None:
    """Mapped columns that hold every key, with the output correction of nothing lost."""
    changes = {
        "layers": ["cs4a"] * 3,
        "decision_scale": 4,
        "sink_scales": 5,
        "cs4a": {5: {"budget": 1.0, "window": 11}, 6: {"budget": 1.0, "window": 15}},
        "csla": {},
        "output_correction": True,
    }
    what = Reductions(source=4, spans=[(0, 2, {5: 0.6, 6: 0.3})])
    image = drawn(model, {**changes, **fields(what)}, inner="eager")
    torch.testing.assert_close(image, slow(model, "mountain", 50, what), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_with_inductor(model: LandscapeVAR) -> None:
    what = CASES["both"]
    image = drawn(model, {**dense_changes(), **fields(what)})
    assert (image - slow(model, "mountain", 50, what)).abs().mean() < 1e-3


def test_the_model_is_as_it_was_afterwards(model: LandscapeVAR) -> None:
    before = model.generate(["mountain"], seed=50)
    drawn(model, {**dense_changes(), **fields(CASES["both"])}, inner="eager")
    assert torch.equal(model.generate(["mountain"], seed=50), before)


def test_the_scale_before_is_the_source_where_it_comes_right_before(model: LandscapeVAR) -> None:
    """One step behind the source both fills read the same scale; a step later one reads the scale that was restored."""
    images = {
        (fill, scales): drawn(
            model,
            {**dense_changes(), **fields(Reductions("change", fill, 4, [(0, 2, dict.fromkeys(scales, 0.4))]))},
            inner="eager",
        )
        for fill in ("output", "previous")
        for scales in ((5,), (5, 6))
    }
    assert torch.equal(images["previous", (5,)], images["output", (5,)])
    assert not torch.allclose(images["previous", (5, 6)], images["output", (5, 6)], atol=1e-3)


@pytest.mark.parametrize("last", [1, 2])
def test_copied_outputs_are_copied_logits(model: LandscapeVAR, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SparseVAR copies logits; here the last block's outputs are copied, and the head works on each token alone.

    A span that ends before the last block copies no logits: the blocks behind it see copies in different places.
    """
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    own = model.logits

    def logits(x: Tensor, head: Tensor) -> Tensor:
        seen.append((x.clone(), head, own(x, head)))
        return seen[-1][-1]

    monkeypatch.setattr(model, "logits", logits)
    drawn(model, {**dense_changes(), **fields(Reductions("change", "anchor", 4, [(0, last, {6: 0.3})]))}, inner="eager")
    x, head, found = seen[-1]
    same = (x[:, :, None] == x[:, None]).all(-1).all(0)  # [N, N]: tokens with the same output in both rows
    first = same.int().argmax(0)
    copies = int((first != torch.arange(len(first))).sum())
    if last < 2:
        assert copies == 0
        return
    assert 0 < copies <= 64 - round(0.3 * 64)
    alone, place = first.unique(return_inverse=True)
    torch.testing.assert_close(own(x[:, alone], head)[:, place], found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, first], found, rtol=1e-5, atol=1e-5)


def test_two_images_of_a_batch_keep_the_same_tokens(model: LandscapeVAR) -> None:
    plan = tiny_plan(model, **{**dense_changes(), **fields(CASES["both"])})
    sparvar.compile(model, plan, inner="eager")
    try:
        both = model.generate(["mountain", "mountain"], seed=50)
        alone = model.generate(["mountain"], seed=50)
    finally:
        sparvar.detach(model)
    assert both.shape[0] == 2 and both.isfinite().all() and alone.shape[0] == 1


def test_rows_without_guidance_are_not_dropped(model: LandscapeVAR) -> None:
    sparvar.compile(
        model, tiny_plan(model, **{**dense_changes(), **fields(CASES["conditional, copied"])}), inner="eager"
    )
    try:
        with pytest.raises(SessionError, match="must be a conditional and an unconditional half"):
            model.generate(["mountain", "sea"], seed=1, cfg=1.0)
        with pytest.raises(SessionError, match="must be a conditional and an unconditional half"):
            model.generate(["mountain"], seed=1, cfg=1.0)
        assert model.generate(["mountain"], seed=1).isfinite().all()  # the generation before was given up
    finally:
        sparvar.detach(model)
