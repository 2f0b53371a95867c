"""Random-weight models of published shapes run under the backend as the real ones would."""

from __future__ import annotations

import pytest
import torch

import sparvar
from sparvar.scale_plans import ModelInfo, default_plan, dense_plan
from sparvar.zoo import SHAPES, ShapedVAR, shaped

SCHEDULE = ((1, 1), (2, 3), (4, 6), (6, 8), (8, 12), (10, 16))
FULL = "infinity-2b", "infinity-8b"


def sites(model: ShapedVAR) -> list[str]:
    return [f"blocks.{i}.sa" for i in range(model.shape.depth)]


def test_published_sizes() -> None:
    """Parameters of the blocks, in billions, by arithmetic: 4 C^2 of attention, 4 of cross-attention, 8 of MLP."""
    for name, billions in zip(FULL, (2.1, 8.2), strict=True):
        shape = SHAPES[name]
        assert shape.head_dim == 128
        assert abs(shape.depth * 16 * shape.width**2 / 1e9 - billions) < 0.1


@pytest.mark.parametrize("guided", [True, False])
def test_an_all_dense_plan_changes_nothing(guided: bool) -> None:
    model = shaped("tiny", SCHEDULE)
    expected = model.generate(2, seed=3, guided=guided)
    plan = dense_plan(SCHEDULE, ModelInfo(sites=sites(model), heads=2, head_dim=64))
    sparvar.compile(model, plan, inner="eager")
    torch.testing.assert_close(model.generate(2, seed=3, guided=guided), expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_is_left_alone_and_the_rest_is_sparse() -> None:
    model = shaped("tiny", SCHEDULE)
    expected = model.generate(1, seed=3)
    plan = default_plan(SCHEDULE, ModelInfo(sites=sites(model), heads=2, head_dim=64), tile=(4, 8), budget=0.5)
    explanation = sparvar.explain(
        torch.compile(model, backend="sparvar", options={"plan": plan, "inner": "eager"}),
        lambda m: m.generate(1, seed=3),
    )
    text = str(explanation)
    assert "left   blocks.0.ca" in text and "taken  blocks.2.sa  cs4a" in text and "site_sparse 1" in text
    actual = model.generate(1, seed=3)
    assert actual.shape == expected.shape and not torch.equal(actual, expected)
    assert (actual - expected).square().mean() < 0.05 * expected.square().mean()


def test_a_generation_ends_early_and_guided_rows_hold_the_same_tokens() -> None:
    model, outputs = shaped("tiny", SCHEDULE, depth=1), {}
    whole = model.through(6, seed=3, on_scale=lambda scale, output: outputs.update({scale: output}))
    assert list(outputs) == [1, 2, 3, 4, 5, 6] and torch.equal(whole, outputs[6])
    assert torch.equal(model.through(4, seed=3), outputs[4])
    assert model.blocks[0].sa.cached_k is None  # type: ignore[union-attr]
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    given, free = model.through(1, seed=3).chunk(2)
    assert torch.equal(*seen[0].chunk(2)) and not torch.equal(given, free)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="depth: must be at least 1, got 0"):
        shaped("tiny", depth=0)
    with pytest.raises(ValueError, match=r"shape: must be one of infinity-2b, .* got 'infinity'"):
        shaped("infinity")
