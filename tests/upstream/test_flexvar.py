"""FlexVAR as published: the schedule is an argument of every generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparvar
from sparvar.errors import SparvarError
from sparvar.scale_plans import Plan, kept_tokens, sparsevar
from tests.upstream.support import Case, assert_planned, assert_same, attached, forget_graphs, made_graphs, ran_sites
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
    try:
        found = case.generate(sides=sides, image=True)
        assert_planned(compiled, plan)  # type: ignore[arg-type]
    finally:
        sparvar.detach(case.model)
    assert found[-1].shape == (1, 3, 80, 80) and found[-1].isfinite().all()


@contextmanager
def behind_the_blocks(case: Case) -> Iterator[list[Tensor]]:
    """What the blocks give to the model's head at every scale, [2 B, N, C], of all generations inside."""
    seen: list[Tensor] = []
    handle = case.model.get_submodule("head_nm").register_forward_pre_hook(
        lambda _, given: seen.append(given[0].clone())
    )
    try:
        yield seen
    finally:
        handle.remove()


def assert_left_out(case: Case, plan: Plan, first: int) -> tuple[list[Tensor], list[Tensor]]:
    """Scales before ``first`` are the model's own, later ones are not; later generations make no graphs.

    Returns what stands behind the blocks at every scale, without the plan and with it.
    """
    with behind_the_blocks(case) as own:
        expected = case.generate(sides=SHORT)
    with attached(case, plan):
        with behind_the_blocks(case) as outputs:
            found = case.generate(sides=SHORT)
        assert_planned(case.model, plan)
        made = len(made_graphs(case.model))
        case.generate(sides=SHORT, seed=4, labels=torch.tensor([3]), cfg=4.0, used_llamagen_cfg=True)
        assert_same(case.generate(sides=SHORT), found)
        assert len(made_graphs(case.model)) == made
    assert_same(found[: first - 1], expected[: first - 1])
    for a, b in zip(found[first - 1 : len(SHORT)], expected[first - 1 : len(SHORT)], strict=True):
        assert a.isfinite().all() and (a - b).abs().max() > 1e-2 * b.abs().max()
    assert found[-1].isfinite().all()
    return own, outputs


def enlarged(x: Tensor, scale: int) -> Tensor:
    """Tokens of the scale before on the grid of ``scale``."""
    grid = x.transpose(1, 2).unflatten(2, (SHORT[scale - 2],) * 2)
    return F.interpolate(grid, size=(SHORT[scale - 1],) * 2, mode="bilinear").flatten(2).transpose(1, 2)


@pytest.mark.parametrize("first", [5, 6])
def test_tokens_are_left_out(case: Case, first: int) -> None:
    """What is skipped has its input and what the blocks added at the source scale."""
    dense = case.plan(dense=True, schedule=square(SHORT))
    plan = kept_tokens(dense, "pivot", "delta", 4, (0.5, 0.25)[first - 5 :])
    assert_left_out(case, plan, first)
    with attached(case, plan):
        case.generate(sides=SHORT)
        assert ran_sites(case.model) == {"pruned": 4 * (7 - first)}


@pytest.mark.parametrize("dense", [True, False])
def test_sparsevar_without_residuals_takes_the_scale_before(case: Case, dense: bool) -> None:
    plan = sparsevar(case.plan(dense=dense, schedule=square(SHORT)), keep=0.4, residual=False)
    own, outputs = assert_left_out(case, plan, 5)
    for scale in (5, 6):
        filled = torch.isclose(outputs[scale - 1], enlarged(outputs[scale - 2], scale), rtol=1e-5, atol=1e-5).all(-1)
        tokens = SHORT[scale - 1] ** 2
        assert (filled.sum(1) == tokens - round(0.4 * tokens)).all()
    # No token has those values by chance.
    assert not torch.isclose(own[4], enlarged(own[3], 5), rtol=1e-5, atol=1e-5).all(-1).any()


@pytest.mark.parametrize("fill", ["copy", "delta"])
def test_last_scales_without_unconditional_rows(case: Case, fill: str) -> None:
    plan = case.plan(dense=True, schedule=square(SHORT)).replace(guidance={"conditional_from": 5, "fill": fill})
    own, outputs = assert_left_out(case, plan, 5)
    given, free = outputs[4].chunk(2)
    assert_same([given], [own[4].chunk(2)[0]])
    if fill == "delta":
        before, without = own[3].chunk(2)
        given = given - enlarged(before - without, 5)
    assert_same([free], [given])
