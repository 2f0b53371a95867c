"""HART as published: 300 text tokens at the head of the cache, and a last scale that MaskGIT may draw in parts."""

from __future__ import annotations

import pytest
import torch

from sparvar.errors import SparvarError
from tests.upstream.hart_models import HART_1024, hart, text
from tests.upstream.support import Case, assert_planned, assert_same, attached, forget_graphs, made_graphs

FAMILY = "hart"
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.filterwarnings("ignore:.*lru_cache.*"),
]


@pytest.fixture(scope="module")
def case() -> Case:
    return hart()


@pytest.mark.parametrize("flash", [False, True])
def test_dense_plan_changes_nothing(flash: bool) -> None:
    model = hart(flash=flash)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=flash):
        expected = model.generate()
        with attached(model, model.plan(dense=True)):
            assert_same(model.generate(), expected)
            assert_planned(model.model, model.plan(dense=True))


@pytest.mark.parametrize("flash", [False, True])
def test_sparse_plan_rewrites_every_planned_site(flash: bool) -> None:
    model = hart(flash=flash)
    plan = model.plan()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=flash):
        expected = model.generate()
        with attached(model, plan):
            found = model.generate()
            assert_planned(model.model, plan)
    assert plan.decision_scale is not None
    assert_same(found[: plan.decision_scale], expected[: plan.decision_scale], rtol=2e-2 if flash else 1e-5)


def test_fourteen_scales_of_1024_pixels() -> None:
    model = hart(HART_1024, depth=3, heads=1)
    plan = model.plan(tile=(8, 16))
    assert plan.keys(plan.scales) == 300 + 9450
    with attached(model, plan):
        found = model.generate()
        assert_planned(model.model, plan)
    assert all(x.isfinite().all() for x in found)


def test_later_generations_make_no_graphs(case: Case) -> None:
    with attached(case):
        first = case.generate()
        made = len(made_graphs(case.model))
        case.generate(seed=6, prompt=text(length=111, seed=3), cfg=2.0)
        case.generate(more_smooth=True, final_stage=1)
        assert_same(case.generate(), first)
        assert len(made_graphs(case.model)) == made


def test_maskgit_in_several_steps_is_dense_or_refused(case: Case) -> None:
    """The last scale comes in random subsets, for which no window and no tile has a place."""
    expected = case.generate(num_maskgit_iters=3)
    with attached(case, case.plan(dense=True)):
        try:
            assert_same(case.generate(num_maskgit_iters=3), expected)
        except SparvarError as refusal:
            assert "maskgit" in str(refusal).lower()
        case.generate()


def test_torch_compile_by_name_with_inductor_and_an_image() -> None:
    model = hart((1, 2, 3, 5, 8), depth=3)
    plan = model.plan()
    forget_graphs()
    compiled = torch.compile(model.model, backend="sparvar", options={"plan": plan})
    found = model.generate(image=True)
    assert_planned(compiled, plan)  # type: ignore[arg-type]
    assert found[-1].shape == (1, 3, 128, 128) and found[-1].isfinite().all()
