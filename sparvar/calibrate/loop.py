"""The closed loop: solve, run what was solved on images that the fit has not seen, correct, and solve again."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparvar.calibrate.predict import choice_of
from sparvar.calibrate.runner import Measured, Runner
from sparvar.calibrate.solver import Case, solve
from sparvar.calibrate.space import Space, plan_of
from sparvar.errors import SparvarError, message
from sparvar.scale_plans import Plan

CONFIDENCE = 1.645
"""Standard errors of slack: the mean of new images falls below the budget in one run of twenty."""
CLOSE_DB = 0.3
"""Slack beyond what is needed, in dB, that is not worth another round."""
EQUAL_DB = 60.0
FRONT = range(24, 45, 2)


class Limits(Protocol):
    """The budget: least mean PSNR in dB, most seconds, each may be None."""

    @property
    def min_psnr(self) -> float | None: ...
    @property
    def max_seconds(self) -> float | None: ...


class Counts(Protocol):
    """How many images each step takes."""

    @property
    def checks(self) -> int: ...
    @property
    def held_out(self) -> int: ...
    @property
    def rounds(self) -> int: ...


@dataclass(frozen=True)
class Trial:
    """A plan of one round: damage (MSE) and seconds as predicted, and what running it gave.

    ``gain`` is the solver's own figure, seconds more than dense: free of what was timed during the rounds.
    """

    plan: Plan
    damage: float
    seconds: float
    exact: bool
    measured: Measured | None
    gain: float = 0.0

    def predicted(self) -> dict[str, float]:
        """PSNR (dB; 100 where the plan is dense) and seconds before it was run."""
        return {"psnr_db": -10 * math.log10(max(self.damage, 1e-10)), "seconds": self.seconds}

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        measured = self.measured.as_dict() if self.measured is not None else None
        return {
            "digest": self.plan.digest,
            "predicted": self.predicted(),
            "exact": self.exact,
            "measured": measured,
            "cost": self.plan.cost(),
        }


class Loop:
    """Searches a problem under a budget; `search` first, then `confirm`."""

    def __init__(
        self,
        runner: Runner,
        base: Plan,
        space: Space,
        problem: Sequence[Case],
        budget: Limits,
        effort: Counts,
        dense_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self.runner, self.base, self.space, self.problem = runner, base, space, problem
        self.budget, self.effort, self.dense_seconds, self.say = budget, effort, dense_seconds, say
        self.layers = len(base.layers)
        self.bias, self.late = 1.0, 0.0
        self.trials: list[Trial] = []
        self.attempt = 0
        self.tighter = 0.0
        self.chosen = self._dense()

    def _dense(self) -> Trial:
        return Trial(self.base, 0.0, self.dense_seconds, True, None)

    def _margin(self, measured: Measured | None) -> float:
        """Slack in dB between a mean over checks and the budget, so that other images meet it too."""
        if measured is None or len(measured.mse) < 2:
            return 1.0
        spread = statistics.stdev(min(value, EQUAL_DB) for value in measured.psnr)
        return CONFIDENCE * spread * math.sqrt(1 / self.effort.checks + 1 / self.effort.held_out)

    def _solve(self, damage: float | None) -> Trial:
        """The best plan for a raw damage limit, or for the seconds of the budget, dense where there is none."""
        seconds = None
        if damage is None:
            assert self.budget.max_seconds is not None
            seconds = self.budget.max_seconds - self.dense_seconds - self.late
        answer = solve(self.problem, self.layers, max_damage=damage, max_seconds=seconds)
        if answer is None:
            return self._dense()
        plan = plan_of(self.base, self.space, choice_of(self.space, answer))
        if plan.planned_sites() == 0 or (damage is not None and answer.seconds >= 0):
            return self._dense()
        took = self.dense_seconds + answer.seconds + self.late
        return Trial(plan, answer.damage * self.bias, took, answer.exact, None, answer.seconds)

    def _try(self, trial: Trial) -> Trial:
        """Run a plan on the check images and learn from it what the prediction missed."""
        measured = self.runner.measure(trial.plan, "check", self.effort.checks)
        raw = trial.damage / self.bias
        done = Trial(trial.plan, trial.damage, trial.seconds, trial.exact, measured, trial.gain)
        self.trials.append(done)
        if raw > 0:
            self.bias = measured.damage / raw
        self.late += measured.median_seconds - trial.seconds
        return done

    def search(self) -> Trial:
        """The cheapest plan that the checks let through.

        Raises:
            SparvarError: no plan is within the seconds, or none within both budgets.
        """
        self.chosen = self._by_psnr(self.budget.min_psnr) if self.budget.min_psnr is not None else self._by_seconds()
        most = self.budget.max_seconds
        if most is not None and self._took(self.chosen) > most:
            fastest = min(self.trials, key=self._took, default=self.chosen)
            got = f"{self._took(self.chosen):.2f} s"
            nearest = f"the fastest plan that was run takes {self._took(fastest):.2f} s"
            if fastest.measured is not None:
                nearest += f" at {fastest.measured.mean_psnr:.1f} dB"
            within = f" within {self.budget.min_psnr:g} dB" if self.budget.min_psnr is not None else ""
            must = f"take at most {most:g} s{within}"
            raise SparvarError(message("plan", must, f"{got} at best", f"{nearest}; give more time, or less quality"))
        return self.chosen

    @staticmethod
    def _took(trial: Trial) -> float:
        return trial.measured.median_seconds if trial.measured is not None else trial.seconds

    def _by_psnr(self, least: float) -> Trial:
        passed: list[tuple[float, Trial]] = []
        good, bad = 0.0, math.inf
        margin = 1.0
        limit = 10 ** (-(least + self.tighter + margin) / 10) / self.bias
        for number in range(self.effort.rounds):
            trial = self._solve(limit)
            if trial.plan.planned_sites() == 0:
                break
            if any(trial.plan.digest == other.plan.digest for _, other in passed):
                break
            self.say(f"round {number + 1}: running a plan predicted at {trial.predicted()['psnr_db']:.1f} dB")
            trial = self._try(trial)
            assert trial.measured is not None
            margin = self._margin(trial.measured)
            slack = trial.measured.mean_psnr - margin - least - self.tighter
            if slack >= 0:
                passed.append((trial.gain, trial))
                good = max(good, limit)
            else:
                bad = min(bad, limit)
            if 0 <= slack <= CLOSE_DB:
                break
            limit = 10 ** (-(least + self.tighter + margin) / 10) / self.bias
            if not good < limit < bad:  # the correction jumps past what is known: halve the rest
                limit = math.sqrt(good * bad) if good > 0 and bad < math.inf else (bad / 2 if good == 0 else good * 2)
        # By the cost table, not by seconds of the rounds: the same table must give the same plan.
        return min(passed, key=lambda entry: entry[0])[1] if passed else self._dense()

    def _by_seconds(self) -> Trial:
        most = self.budget.max_seconds
        assert most is not None
        best = self._dense()
        if best.seconds <= most:
            return best
        for number in range(self.effort.rounds):
            trial = self._solve(None)
            if trial.plan.planned_sites() == 0:
                break
            self.say(f"round {number + 1}: running a plan predicted at {trial.seconds:.2f} s")
            if any(trial.plan.digest == other.plan.digest for other in self.trials):
                break
            trial = best = self._try(trial)
            if self._took(trial) <= most:
                break
        return best

    def confirm(self, best: Trial) -> tuple[Measured, int]:
        """Run the plan on held-out images; where they miss the budget, tighten once and take new ones."""
        count = self.effort.held_out
        self.chosen = best
        while True:
            self.say("held-out images")
            held = self.runner.measure(self.chosen.plan, "held", count, self.attempt * count)
            least = self.budget.min_psnr
            if least is None or held.mean_psnr >= least or self.chosen.plan.planned_sites() == 0:
                return held, self.attempt + 1
            if self.attempt == 2:
                self.chosen = self._dense()
                self.attempt += 1
                continue
            self.attempt += 1
            self.tighter += least - held.mean_psnr + 0.2
            self.chosen = self.search()

    def front(self) -> list[dict[str, float]]:
        """Predicted seconds of the best plan at a row of PSNRs, with what the rounds have corrected."""
        points = []
        for psnr in FRONT:
            trial = self._solve(10 ** (-psnr / 10) / self.bias)
            points.append({"psnr_db": float(psnr), "seconds": trial.seconds})
        return points
