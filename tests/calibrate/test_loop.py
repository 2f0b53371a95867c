"""What the loop says where it gives up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sparvar.calibrate.loop import Loop
from sparvar.calibrate.runner import Measured
from sparvar.calibrate.trials import Trial
from tests.calibrate.reports import base_plan, make_plan


def given(chosen: Any, *psnr: float, timed: bool = True) -> Any:
    measured = [Measured((10 ** (-value / 10),) * 2, (1.5, 1.5)) for value in psnr]
    trials = [Trial(make_plan(), 0.0, 1.0, True, each) for each in measured]
    return SimpleNamespace(chosen=Trial(chosen, 0.0, 1.0, True, None), trials=trials, timed=timed)


@pytest.mark.parametrize(("timed", "seconds"), [(True, " in 1.50 s"), (False, "")])
def test_an_all_dense_plan_names_the_best_that_was_run(timed: bool, seconds: str) -> None:
    text = Loop.nearest_run(given(base_plan(6), 30.0, 31.26, 29.0, timed=timed))
    assert text == f"a sparse plan that was run reached 31.3 dB{seconds}, without room for other images"


def test_a_sparse_plan_and_a_loop_that_ran_nothing_name_none() -> None:
    assert Loop.nearest_run(given(make_plan(), 30.0)) is None
    assert Loop.nearest_run(given(base_plan(6))) is None
