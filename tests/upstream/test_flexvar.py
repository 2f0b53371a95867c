"""FlexVAR as published: the schedule is an argument of every generation."""

from __future__ import annotations

import pytest
import torch

from sparvar.errors import SparvarError
from tests.upstream.support import Case, assert_planned, assert_same, attached, forget_graphs, made_graphs
from tests.upstream.var_models import VAR_256, flexvar

FAMILY = "FlexVAR"
pytestmark = pytest.mark.upstream
SHORT = (1, 2, 3, 5, 8, 12)
LARGER = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20)


def square(sides: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(side, side) for side in sides]


@pytest.fixture(scope="module")
def case() -> Case:
    return flexvar(depth=4)


@pytest.mark.parametrize("sides", [SHORT, VAR_256, LARGER])
def test_dense_plan_changes_nothing(case: Case, sides: tuple[int, ...]) -> None:
    expected = case.generate(sides=sides)
    plan = case.plan(dense=True, schedule=square(sides))
    with attached(case, plan):
        assert_same(case.generate(sides=sides), expected)
        assert_planned(case.model, plan)


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
@pytest.mark.parametrize("sides", [SHORT, LARGER])
def test_sparse_plan_rewrites_every_planned_site(sides: tuple[int, ...], attention: str) -> None:
    model = flexvar(depth=4, attention=attention)
    plan = model.plan(schedule=square(sides))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=attention == "flash"):
        expected = model.generate(sides=sides)
        with attached(model, plan):
            found = model.generate(sides=sides)
            assert_planned(model.model, plan)
    assert plan.decision_scale is not None
    rtol = 2e-2 if attention == "flash" else 1e-5
    assert_same(found[: plan.decision_scale], expected[: plan.decision_scale], rtol=rtol)


def test_later_generations_make_no_graphs(case: Case) -> None:
    with attached(case, case.plan(schedule=square(SHORT))):
        first = case.generate(sides=SHORT)
        made = len(made_graphs(case.model))
        case.generate(sides=SHORT, seed=4, labels=torch.tensor([3]), cfg=4.0, used_llamagen_cfg=True)
        assert_same(case.generate(sides=SHORT), first)
        assert len(made_graphs(case.model)) == made


def test_another_schedule_is_never_run_under_this_plan(case: Case) -> None:
    """It is refused, or the generation is planned for the schedule it has."""
    other = (1, 2, 3, 6, 9, 12)
    with attached(case, case.plan(schedule=square(SHORT))) as attachment:
        first = case.generate(sides=SHORT)
        try:
            case.generate(sides=other)
        except SparvarError as refusal:
            assert "schedule" in str(refusal)
        else:
            assert attachment.last is not None and list(attachment.last.plan.schedule) == square(other)
        assert_same(case.generate(sides=SHORT), first)


def test_torch_compile_by_name_with_inductor_and_an_image(case: Case) -> None:
    sides = (1, 2, 3, 5)
    plan = case.plan(schedule=square(sides))
    forget_graphs()
    compiled = torch.compile(case.model, backend="sparvar", options={"plan": plan})
    found = case.generate(sides=sides, image=True)
    assert_planned(compiled, plan)  # type: ignore[arg-type]
    assert found[-1].shape == (1, 3, 80, 80) and found[-1].isfinite().all()
