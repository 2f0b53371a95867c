"""The closed loop: solve, run what was solved on images that the fit has not seen, correct, and solve again."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sparvar.calibrate.candidates.space import Space, plan_of
from sparvar.calibrate.fit.difficulty import easier
from sparvar.calibrate.fit.per_image import fit_per_image
from sparvar.calibrate.fit.predict import choice_of
from sparvar.calibrate.measure.runner import Measured, Runner
from sparvar.calibrate.search.solver import Case, solve
from sparvar.calibrate.search.trials import Held, Trial, plain
from sparvar.errors import SparvarError, message
from sparvar.scale_plans import Plan

CONFIDENCE = 1.645
"""Standard errors of slack: the mean of new images falls below the budget in one run of twenty."""
CLOSE_DB = 0.5
"""Slack beyond what is needed, in dB, that is not worth another round."""
EQUAL_DB = 60.0
FIRST_MARGIN = 1.0
"""Slack in dB of the first round, which knows no spread yet."""
LEAST_LOSS = 1e-6
NO_LIMIT = 100.0
"""More damage than any image can have, whose values lie in [0, 1]."""
MORE_ROUNDS = 2
"""Rounds more where none of the first passed: what they taught brings the next nearer, and else the plan is dense."""
ATTEMPTS = 3
"""Sets of held-out images before a calibration gives up for the dense plan."""
FRONT = range(24, 41, 2)
"""PSNR in dB of the Pareto front that reports draw."""


class Limits(Protocol):
    """The budget, see `sparvar.calibrate.Budget`; each may be None."""

    @property
    def min_psnr(self) -> float | None: ...
    @property
    def min_ssim(self) -> float | None: ...
    @property
    def max_error(self) -> float | None: ...
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


class Problem(Protocol):
    """What the solver works on."""

    def cases(self, max_error: float | None) -> Sequence[Case]:
        """The cases without candidates whose relative output error in a layer is above ``max_error``."""
        ...


class Loop:
    """Searches a problem under a budget; `search` first, then `confirm`.

    ``timed`` is False where seconds are those of another machine: then they are predicted and never corrected.
    ``base`` may compress its cache: it then harms images by ``base_damage``. With ``per_image`` the plan that is found
    may leave out scales of images that do not need them; ``choices`` says what came of it.
    """

    def __init__(
        self,
        runner: Runner,
        base: Plan,
        space: Space,
        problem: Problem,
        budget: Limits,
        effort: Counts,
        dense_seconds: float,
        say: Callable[[str], None],
        timed: bool = True,
        base_damage: float = 0.0,
        per_image: bool = False,
    ) -> None:
        self.runner, self.base, self.space, self.problem = runner, base, space, problem
        self.budget, self.effort, self.dense_seconds, self.say = budget, effort, dense_seconds, say
        self.timed, self.base_damage, self.per_image = timed, base_damage, per_image
        self.choices: dict[str, Any] | None = None
        self.layers = len(base.layers)
        self.bias, self.late = 1.0, 0.0
        self.trials: list[Trial] = []
        self.attempt = 0
        self.tighter = 0.0
        self.max_error = budget.max_error
        self.cases = problem.cases(self.max_error)
        self.chosen = self._dense()

    def _dense(self) -> Trial:
        return Trial(self.base, self.base_damage, self.dense_seconds, True, None)

    def _solve(self, damage: float | None, seconds: float | None = None) -> Trial:
        """The best plan for a raw damage limit, or for seconds; dense where there is none."""
        late = None if seconds is None else seconds - self.dense_seconds - self.late
        answer = solve(self.cases, self.layers, max_damage=damage, max_seconds=late)
        if answer is None:
            return self._dense()
        choice = choice_of(self.space, answer)
        plan = plan_of(self.base, self.space, choice)
        if plain(plan) or (damage is not None and answer.seconds >= 0):
            return self._dense()
        took = self.dense_seconds + answer.seconds + self.late
        return Trial(plan, answer.damage * self.bias, took, answer.exact, None, answer.seconds, choice)

    def _try(self, trial: Trial) -> Trial:
        """Run a plan on the check images and learn from it what the prediction missed."""
        measured = self.runner.measure(trial.plan, "check", self.effort.checks)
        raw = trial.damage / self.bias
        done = dataclasses.replace(trial, measured=measured)
        self.trials.append(done)
        if raw > 0:
            self.bias = measured.damage / raw
        if self.timed:
            self.late += measured.median_seconds - trial.seconds
        return done

    def _took(self, trial: Trial) -> float:
        return trial.measured.median_seconds if self.timed and trial.measured is not None else trial.seconds

    def search(self) -> Trial:
        """The cheapest plan that the checks let through.

        Raises:
            SparvarError: no plan is within the seconds, or none within all budgets; the nearest are named.
        """
        if self._bounds_quality or self.budget.max_error is not None:
            self.chosen = self._by_quality()
        else:
            self.chosen = self._by_seconds()
        if self.per_image:
            self.chosen = self._with_choice(self.chosen)
        most = self.budget.max_seconds
        if most is not None and self._took(self.chosen) > most:
            asked = self._asked()
            # Without a bound on quality it is the fastest plan of all that is too slow.
            got = f"{self._took(self.chosen if asked else self._solve(NO_LIMIT)):.2f} s at best"
            within = f" within {asked}" if asked else ""
            raise SparvarError(message("plan", f"take at most {most:g} s{within}", got, self.nearest(most)))
        return self.chosen

    @property
    def _bounds_quality(self) -> bool:
        return self.budget.min_psnr is not None or self.budget.min_ssim is not None

    def _asked(self) -> str:
        budget = self.budget
        asked = {"dB": budget.min_psnr, "SSIM": budget.min_ssim, "relative output error": budget.max_error}
        return " and ".join(f"{value:g} {name}" for name, value in asked.items() if value is not None)

    def nearest(self, seconds: float) -> str:
        """In words, the best that is within ``seconds``, and the fastest of all."""
        within, fastest = self._solve(None, seconds), self._solve(NO_LIMIT)
        run = [trial for trial in self.trials if trial.measured is not None]
        parts = []
        if not plain(within.plan):
            parts.append(f"in {seconds:g} s the best plan is predicted at {within.predicted()['psnr_db']:.1f} dB")
        else:
            shown = fastest.predicted()
            parts.append(f"the fastest plan is predicted at {shown['seconds']:.2f} s and {shown['psnr_db']:.1f} dB")
        if run:
            best = min(run, key=self._took)
            assert best.measured is not None
            parts.append(f"the fastest that was run took {self._took(best):.2f} s at {best.measured.mean_psnr:.1f} dB")
        return "; ".join(parts) + "; give more time, or less quality"

    def nearest_run(self) -> str | None:
        """In words, of the sparse plans that were run and missed the budget the one with the best images, or None."""
        run = [trial.measured for trial in self.trials if trial.measured is not None]
        if not self.chosen.plan.all_dense or not run:
            return None
        best = max(run, key=lambda measured: measured.mean_psnr)
        took = f" in {best.median_seconds:.2f} s" if self.timed else ""
        return f"a sparse plan that was run reached {best.mean_psnr:.1f} dB{took}, without room for other images"

    def _slack(self, measured: Measured) -> tuple[float, float]:
        """(slack, margin) in dB: what the checks leave above the budget and above the margin for other images."""
        count = math.sqrt(1 / self.effort.checks + 1 / self.effort.held_out)
        found: list[tuple[float, float]] = []
        if self.budget.min_psnr is not None:
            margin = CONFIDENCE * _spread([min(value, EQUAL_DB) for value in measured.psnr]) * count
            found.append((measured.mean_psnr - margin - self.budget.min_psnr, margin))
        if self.budget.min_ssim is not None:
            mean = measured.mean_ssim
            assert mean is not None
            lost = CONFIDENCE * _spread([math.log(max(1 - value, LEAST_LOSS)) for value in measured.ssim]) * count
            to_db = -1 / self.runner.ssim_line()[0]
            gap = math.log(1 - self.budget.min_ssim) - math.log(max(1 - mean, LEAST_LOSS))
            found.append(((gap - lost) * to_db, lost * to_db))
        slack, margin = min(found)
        return slack - self.tighter, margin

    def _by_quality(self) -> Trial:
        passed: list[tuple[float, Trial]] = []
        good, bad = 0.0, math.inf
        limit = NO_LIMIT
        if self._bounds_quality:
            goal = [self.budget.min_psnr] if self.budget.min_psnr is not None else []
            if self.budget.min_ssim is not None:
                slope, offset = self.runner.ssim_line()
                goal.append((math.log(1 - self.budget.min_ssim) - offset) / slope)
            limit = 10 ** (-(max(goal) + self.tighter + FIRST_MARGIN) / 10) / self.bias
        for number in range(self.effort.rounds + MORE_ROUNDS):
            if number >= self.effort.rounds and passed:
                break
            trial = self._solve(limit)
            if plain(trial.plan):
                break
            if any(trial.plan.digest == other.plan.digest for _, other in passed):
                break
            self.say(f"round {number + 1}: running a plan predicted at {trial.predicted()['psnr_db']:.1f} dB")
            trial = self._try(trial)
            assert trial.measured is not None
            if not self._bounds_quality:
                passed.append((trial.gain, trial))  # every candidate of it is within the error
                break
            slack, _ = self._slack(trial.measured)
            if slack >= 0:
                passed.append((trial.gain, trial))
                good = max(good, limit)
            else:
                bad = min(bad, limit)
            if 0 <= slack <= CLOSE_DB:
                break
            # ``bias`` has just been set: what this plan measured is what its raw damage stands for.
            limit = 10 ** (-(trial.measured.mean_psnr - slack) / 10) / self.bias
            if not good < limit < bad:  # the correction jumps past what is known: halve the rest
                limit = math.sqrt(good * bad) if good > 0 and bad < math.inf else (bad / 2 if good == 0 else good * 2)
        # By the cost table, not by seconds of the rounds: the same table must give the same plan.
        return min(passed, key=lambda entry: entry[0])[1] if passed else self._dense()

    def _with_choice(self, trial: Trial) -> Trial:
        """The plan with a choice per image of the scales that it needs, where that keeps the budget on other images."""
        budget, count = self.budget, self.effort.checks
        least = None if budget.min_psnr is None else budget.min_psnr + self.tighter
        fitted = fit_per_image(self.runner, trial.plan, count, least, budget.min_ssim, self.say)
        self.choices = {**fitted.record, "adopted": False}
        if fitted.plan is None:
            return trial
        self.say("running the plan with its choice per image")
        measured = self.runner.measure(fitted.plan, "check", count, count)
        slack, _ = self._slack(measured)
        self.choices |= {"checked": measured.as_dict(), "slack_db": slack, "adopted": slack >= 0}
        if slack < 0:
            self.choices["why"] = "with the choice, other images are too near to the budget"
            return trial
        took = measured.median_seconds if self.timed else trial.seconds
        return dataclasses.replace(
            trial, plan=fitted.plan, damage=measured.damage, seconds=took, measured=measured, begin=count
        )

    def _by_seconds(self) -> Trial:
        most = self.budget.max_seconds
        assert most is not None
        best = self._dense()
        if best.seconds <= most:
            return best
        for number in range(self.effort.rounds):
            trial = self._solve(None, most)
            if plain(trial.plan):
                break
            self.say(f"round {number + 1}: running a plan predicted at {trial.seconds:.2f} s")
            if any(trial.plan.digest == other.plan.digest for other in self.trials):
                break
            trial = best = self._try(trial)
            if self._took(trial) <= most:
                break
        return best

    def confirm(self, best: Trial) -> Held:
        """Run the plan on held-out images; where they miss the budget, tighten and take new ones, at most twice."""
        count = self.effort.held_out
        self.chosen = best
        while True:
            self.say("held-out images")
            expected, more = self._expected(self.attempt * count)
            held = self.runner.measure(self.chosen.plan, "held", count, self.attempt * count)
            error = self._error()
            missed = self._missed(held)
            beyond = error is not None and self.budget.max_error is not None and error > self.budget.max_error
            if not (missed > 0 or beyond) or self.chosen.plan.all_dense:
                return Held(held, error, self.attempt + 1, expected, more, self._took(self.chosen))
            if plain(self.chosen.plan):
                must = f"keep {self._asked()} on held-out images"
                got = f"{missed:.2f} dB less with a compressed cache alone"
                raise SparvarError(message("plan", must, got, "allow a larger cache, or less quality"))
            self.attempt += 1
            if self.attempt == ATTEMPTS:
                self.chosen = self._dense()
                continue
            self.tighter += missed + CLOSE_DB if missed > 0 else 0.0
            if beyond:
                assert error is not None and self.budget.max_error is not None and self.max_error is not None
                self.max_error *= 0.95 * self.budget.max_error / error
                self.cases = self.problem.cases(self.max_error)
            self.chosen = self.search()

    def _expected(self, begin: int) -> tuple[float, float]:
        """(dB, dB of them for what they are) of held-out images from ``begin`` on, whose dense ones are known."""
        chosen, count = self.chosen, self.effort.held_out
        if chosen.measured is None:
            return chosen.predicted()["psnr_db"], 0.0
        psnr = [min(value, EQUAL_DB) for value in chosen.measured.psnr]
        known = self.runner.details("check", len(psnr), chosen.begin)
        more = easier(known, psnr, self.runner.details("held", count, begin))
        return statistics.mean(psnr) + more, more

    def _missed(self, held: Measured) -> float:
        """How far, in dB, held-out images are below the budget; 0 or less where they meet it."""
        missed = [0.0]
        if self.budget.min_psnr is not None:
            missed.append(self.budget.min_psnr - held.mean_psnr)
        if self.budget.min_ssim is not None and held.mean_ssim is not None:
            ratio = max(1 - held.mean_ssim, LEAST_LOSS) / (1 - self.budget.min_ssim)
            missed.append(-math.log(ratio) / self.runner.ssim_line()[0])
        return max(missed)

    def _error(self) -> float | None:
        """Largest relative output error of a site under the chosen plan, on a held-out seed."""
        if self.budget.max_error is None or self.chosen.choice is None:
            return None
        return self.runner.error(self.space, self.chosen.plan, self.chosen.choice, self.attempt)

    def front(self) -> list[dict[str, float]]:
        """Predicted seconds of the best plan at a row of PSNRs, with what the rounds have corrected."""
        points = []
        for psnr in FRONT:
            trial = self._solve(10 ** (-psnr / 10) / self.bias)
            points.append({"psnr_db": float(psnr), "seconds": trial.seconds})
        return points


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
