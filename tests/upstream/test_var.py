"""VAR as published: 256- and 512-pixel schedules, through each attention that it can pick."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from tests.upstream.support import Case, assert_planned, assert_same, attached, attachment, forget_graphs, made_graphs
from tests.upstream.var_models import VAR_512, var

FAMILY = "VAR"
pytestmark = pytest.mark.upstream
PATHS = [("sdpa", False), ("xformers", False), ("sdpa", True), ("flash", True)]


def precision(half: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()


@pytest.fixture(scope="module")
def case() -> Case:
    return var(depth=4)


@pytest.mark.parametrize(("attention", "half"), PATHS)
def test_dense_plan_changes_nothing(attention: str, half: bool) -> None:
    # In bf16 too: the dense path computes what the model computes, from a cache that holds the same values.
    model = var(attention=attention)
    with precision(half):
        expected = model.generate()
        with attached(model, model.plan(dense=True)):
            assert_same(model.generate(), expected)
            assert_planned(model.model, model.plan(dense=True))


@pytest.mark.parametrize(("attention", "half"), PATHS)
def test_sparse_plan_rewrites_every_planned_site(attention: str, half: bool) -> None:
    model = var(depth=4, attention=attention)
    plan = model.plan()
    with precision(half):
        expected = model.generate()
        with attached(model, plan):
            found = model.generate()
            assert_planned(model.model, plan)
    assert plan.decision_scale is not None
    assert_same(found[: plan.decision_scale], expected[: plan.decision_scale], rtol=2e-2 if half else 1e-5)
    assert not torch.equal(found[-2], expected[-2])
    assert all(x.isfinite().all() for x in found)


def test_later_generations_make_no_graphs(case: Case) -> None:
    with attached(case):
        first = case.generate()
        made = len(made_graphs(case.model))
        case.generate(seed=7, labels=torch.tensor([5]), cfg=4.0, top_k=9)
        case.generate(more_smooth=True)
        assert_same(case.generate(), first)
        assert len(made_graphs(case.model)) == made
        assert attachment(case.model).generations == 4


def test_another_batch_size_makes_its_own_graphs_once(case: Case) -> None:
    plan = case.plan(dense=True)
    expected = case.generate(batch=2)
    with attached(case, plan):
        case.generate()
        assert_same(case.generate(batch=2), expected)
        case.generate(batch=2, seed=3)
        assert len(made_graphs(case.model)) == 2 * plan.scales


def test_512_pixels_with_shared_modulation() -> None:
    model = var(sides=VAR_512, depth=4, heads=1, shared_aln=True)
    plan = model.plan(tile=(8, 16))
    expected = model.generate()
    with attached(model, plan):
        found = model.generate()
        assert_planned(model.model, plan)
    assert_same(found[:8], expected[:8])


def test_training_forward_is_left_alone(case: Case) -> None:
    tokens = torch.randn(1, 679, 8)
    torch.manual_seed(1)
    expected = case.model(torch.tensor([1]), tokens)
    with attached(case):
        torch.manual_seed(1)
        with torch.no_grad():
            found = case.model(torch.tensor([1]), tokens)
        assert_same([found], [expected])
        case.generate()


def test_torch_compile_by_name_with_inductor_and_an_image() -> None:
    model = var(sides=(1, 2, 3, 5, 8), depth=3)
    plan = model.plan()
    expected = model.generate(image=True)
    forget_graphs()
    compiled = torch.compile(model.model, backend="sparvar", options={"plan": plan})
    image = compiled.autoregressive_infer_cfg(B=1, label_B=torch.tensor([0]), g_seed=1)  # type: ignore[operator]
    assert_planned(compiled, plan)  # type: ignore[arg-type]
    assert image.shape == expected[-1].shape and image.min() >= 0 and image.max() <= 1
