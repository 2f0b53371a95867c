"""What the loop says where it gives up, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from sparvar.calibrate import Budget, Effort
from sparvar.calibrate.fit.predict import Sensitivity
from sparvar.calibrate.fit.ssim_line import SsimLine
from sparvar.calibrate.measure.measured import Measured, aggregate
from sparvar.calibrate.search.loop import Loop
from sparvar.calibrate.search.trials import Trial
from sparvar.progress import Silent
from sparvar.scale_plans import Plan
from tests.calibrate.reports import base_plan, make_plan

EFFORT = Effort.quick()


class FakeRunner:
    """Says what plans gave, of which it is told by digest."""

    def __init__(self, measured: dict[str, Measured]) -> None:
        self.measured, self.progress, self.ssim_line = measured, Silent(), SsimLine()

    def measure(self, plan: Plan, *rest: object) -> Measured:
        return self.measured[plan.digest]


def made_loop(plans: Sequence[Plan] = (), psnr: Sequence[float] = (), timed: bool = False) -> Loop:
    """A loop whose solver answers with ``plans`` one after another, which run at ``psnr``."""
    gave = {plan.digest: Measured((10 ** (-value / 10),) * 3, (1.5,)) for plan, value in zip(plans, psnr, strict=True)}
    problem = SimpleNamespace(
        base=base_plan(6), start=base_plan(6), start_mse=0.0, start_seconds=9.0, timed=timed, cases=lambda max_error: []
    )
    loop = Loop(FakeRunner(gave), problem, Budget(min_psnr=32), EFFORT)  # type: ignore[arg-type]
    solved = iter(plans)
    loop._solve = lambda *limits: Trial(next(solved), 1e-3, 1.0, True, None, gain=-len(loop.trials))  # type: ignore[method-assign]
    return loop


def different_plans(count: int) -> list[Plan]:
    return [make_plan().replace(cs4a={13: {"budget": 0.1 + 0.01 * number}}) for number in range(count)]


@pytest.mark.parametrize(("timed", "seconds"), [(True, " in 1.50 s"), (False, "")])
def test_an_all_dense_plan_names_the_best_that_was_run(timed: bool, seconds: str) -> None:
    loop = made_loop(different_plans(3), (30.0, 31.26, 29.0), timed)
    for _ in range(3):
        loop._run_trial(loop._solve(None))
    text = loop._nearest_run()
    assert text == f"a sparse plan that was run reached 31.3 dB{seconds}, without room for other images"


def test_a_sparse_plan_and_a_loop_that_ran_nothing_name_none() -> None:
    loop = made_loop(different_plans(1), (30.0,))
    assert loop._nearest_run() is None
    loop.chosen = loop._run_trial(loop._solve(None))
    assert loop._nearest_run() is None


def test_a_scale_that_was_not_probed_takes_the_law_of_the_nearest() -> None:
    known = Sensitivity((1.0, 2.0), {11: 0.1, 13: 0.3}, {11: 0.2, 13: 0.5})
    found = known.at_scales(range(9, 14))
    assert found.factors == {9: 0.1, 10: 0.1, 11: 0.1, 12: 0.3, 13: 0.3}
    assert found.powers == {9: 0.2, 10: 0.2, 11: 0.2, 12: 0.5, 13: 0.5} and found.weights == known.weights


def test_the_image_in_which_a_plan_was_compiled_counts_for_quality_alone() -> None:
    records = [
        {"mse": 1e-3, "seconds": None, "ssim": 0.9, "took": {}},
        {"mse": 1e-4, "seconds": 2.0, "ssim": 0.95, "took": {}},
        {"mse": 1e-5, "seconds": 4.0, "ssim": 0.97, "took": {}},
    ]
    found = aggregate(records)
    assert found.mean_psnr == pytest.approx(40) and len(found.ssim) == 3
    assert found.seconds == (2.0, 4.0) and found.median_seconds == 3.0


@pytest.mark.parametrize(
    ("psnr", "run", "chosen"),
    [
        ((35.0, 34.0, 33.0), 2, 1),  # both pass: no more than the rounds of the effort
        ((32.2, 33.0), 1, 0),  # close enough
        ((30.0, 34.0, 33.0), 2, 1),
        ((30.0, 31.0, 33.0, 32.2), 3, 2),  # none has passed after two
        ((30.0, 31.0, 31.5, 32.6, 33.0), 4, 3),
        ((30.0, 30.0, 30.0, 30.0, 40.0), 4, None),  # it gives up
    ],
)
def test_rounds_go_on_while_none_has_passed(psnr: tuple[float, ...], run: int, chosen: int | None) -> None:
    plans = different_plans(len(psnr))
    loop = made_loop(plans, psnr)
    found = loop._by_quality()
    assert len(loop.trials) == run
    assert found.plan.digest == (base_plan(6) if chosen is None else plans[chosen]).digest
