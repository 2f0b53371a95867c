"""Plans that decide by the image which of the last scales are drawn, and which with guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.backend import attachment_of
from sparvar.errors import PlanError
from sparvar.models.fingerprint import fingerprint
from sparvar.runtime.choices import edge_change, features, fine_share
from sparvar.scale_plans import Logistic, Plan, decide, local
from sparvar.zoo.model import LandscapeVAR
from tests.tiny import dense_changes, full_window_changes, tiny_model, tiny_plan

YES: dict[str, Any] = {"bias": 5.0, "weights": [0.0, 0.0]}
NO: dict[str, Any] = {"bias": -5.0, "weights": [0.0, 0.0]}


@pytest.fixture(scope="module")
def model() -> LandscapeVAR:
    return tiny_model()


def adaptive(model: LandscapeVAR, base: dict[str, Any] | None = None, **adapt: Any) -> Plan:
    record = {"fingerprint": fingerprint(model), "scale": 4, **adapt}
    return tiny_plan(model, **(base or dense_changes()), adapt=record)


def drawn(model: LandscapeVAR, plan: Plan, labels: Sequence[str | int] = ("mountain",)) -> Tensor:
    sparvar.compile(model, plan, inner="eager")
    return model.generate(list(labels), seed=50)


STATIC: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all say no": ({"skip": [NO, YES], "conditional": [NO]}, {}),
    "one scale less": ({"skip": [YES, NO], "conditional": [YES]}, {"skip": {"last": 1}}),
    "two scales less": ({"skip": [YES, YES]}, {"skip": {"last": 2}}),
    "rows of one scale": ({"conditional": [YES, NO]}, {"guidance": {"conditional_from": 6}}),
    "rows of two scales": (
        {"skip": [NO], "conditional": [YES, YES], "fill": "delta"},
        {"guidance": {"conditional_from": 5, "fill": "delta"}},
    ),
    "rows of the last scale": (
        {"skip": [NO], "conditional": [YES, NO], "fill": "delta"},
        {"guidance": {"conditional_from": 6, "fill": "delta"}},
    ),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_decision_goes_on_as_the_static_plan(model: LandscapeVAR, name: str) -> None:
    adapt, static = STATIC[name]
    try:
        found = drawn(model, adaptive(model, **adapt))
        attachment = attachment_of(model)
        assert attachment is not None and attachment.generations == 1
        assert list(attachment.choices.counts.values()) == [1] and len(attachment.choices.seconds) == 1
        assert "1 generations decided" in str(attachment.choices)
        own = drawn(model, tiny_plan(model, **dense_changes(), **static))
    finally:
        sparvar.detach(model)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-6)


def test_with_sparse_attention_and_pruning(model: LandscapeVAR) -> None:
    spans = [{"first": 1, "last": 2, "keep": {5: 0.5, 6: 0.5}}]
    base = {**full_window_changes(), "pruning": {"score": "pivot", "fill": "delta", "source": 3, "spans": spans}}
    try:
        found = drawn(model, adaptive(model, base, conditional=[YES, YES]))
        own = drawn(model, tiny_plan(model, **base, guidance={"conditional_from": 5}))
        explained = str(sparvar.explain(model))
    finally:
        sparvar.detach(model)
    torch.testing.assert_close(found, own, rtol=0, atol=1e-6)
    assert "tiny" in explained


def test_explain_tells_what_was_decided(model: LandscapeVAR) -> None:
    sparvar.compile(model, adaptive(model, skip=[YES]), inner="eager")
    try:
        text = str(sparvar.explain(model, lambda each: each.generate(["sea"])))  # type: ignore[operator]
    finally:
        sparvar.detach(model)
    assert "note: the last 1 of 6 scales are skipped" in text
    assert "ms each for two decodes: 1 of tiny (last 1 skipped)" in text


def test_a_batch_is_as_careful_as_its_most_careful_image() -> None:
    bold = Logistic(bias=0.0, weights=(1.0, 0.0))
    record = adaptive(tiny_model(), skip=[bold, bold], conditional=[bold]).adapt
    assert record is not None
    assert decide(record, [[3.0, 0.0]]) == (2, 0)
    assert decide(record, [[3.0, 0.0], [-1.0, 0.0]]) == (0, 0)
    careful = record.model_copy(update={"skip": (bold, Logistic(bias=-2.0, weights=(1.0, 0.0)))})
    assert decide(careful, [[1.0, 0.0], [3.0, 0.0]]) == (1, 0)
    rows = record.model_copy(update={"skip": ()})
    assert decide(rows, [[3.0, 0.0]]) == (0, 1) and decide(rows, [[3.0, 0.0], [-3.0, 0.0]]) == (0, 0)


def test_features_of_an_image() -> None:
    flat = torch.full((1, 3, 32, 32), 0.5)
    step = flat.clone()
    step[:, :, :, 16:] = 1.0
    noise = flat + 0.1 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert edge_change(flat, flat).item() == 0
    # The step's two columns have slope 4 * 0.5 in Sobel's units.
    torch.testing.assert_close(edge_change(flat, step), torch.tensor([2 * 2.0 / 32]))
    assert fine_share(flat).item() == pytest.approx(0, abs=1e-4)
    assert fine_share(noise).item() > 0.3 > fine_share(step).item()
    pair = features(torch.cat((flat, flat)), torch.cat((step, noise)))
    assert pair[0][0] == pytest.approx(0.125) and pair[1][1] == pytest.approx(fine_share(noise).item())


def test_what_another_model_was_fitted_on_is_refused(model: LandscapeVAR) -> None:
    other = tiny_model(depth=2)
    plan = adaptive(model, skip=[YES])
    assert plan.adapt is not None
    changed = plan.adapt.model_copy(update={"fingerprint": fingerprint(other)})
    with pytest.raises(PlanError, match=r"adapt: must be fitted on this LandscapeVAR .* got fitted on another model"):
        sparvar.compile(model, plan.replace(adapt=changed), inner="eager")


@pytest.mark.parametrize("skipped", [1, 2])
def test_what_concerns_skipped_scales_goes_with_them(model: LandscapeVAR, skipped: int) -> None:
    """Pruning of the last scale alone, dropped guidance, and a compressed cache."""
    adapt = {"skip": [YES] * skipped, "scale": 3}
    spans = [{"first": 0, "last": 2, "keep": {6: 0.5}}]
    pruned = {**dense_changes(), "pruning": {"score": "pivot", "fill": "delta", "source": 3, "spans": spans}}
    guided = {**dense_changes(), "guidance": {"conditional_from": 3, "fill": "delta"}}
    compressed = {**dense_changes(), "kv": local(tiny_plan(model, **dense_changes()), 12)}
    assert set(compressed["kv"].keep) == {3, 4, 5}
    static = {**compressed, "kv": compressed["kv"].before(6 - skipped)}
    pairs = [(pruned, dense_changes()), (guided, guided), (compressed, static)]
    try:
        for base, own in pairs:
            found = drawn(model, adaptive(model, base, **adapt))
            expected = drawn(model, tiny_plan(model, **own, skip={"last": skipped}))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    finally:
        sparvar.detach(model)


def test_guidance_and_decisions_about_it_do_not_meet(model: LandscapeVAR) -> None:
    late = {**dense_changes(), "guidance": {"conditional_from": 6}}
    with pytest.raises(PlanError, match="be a scale that is always drawn, at most 5"):
        adaptive(model, late, skip=[YES])
    with pytest.raises(PlanError, match="leave unconditional rows to the plan's guidance"):
        adaptive(model, late, conditional=[YES])
