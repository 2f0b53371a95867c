"""The closed loop: solve, run what was solved on images that the fit has not seen, correct, and solve again."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.candidates.space import plan_of
from sparvar.calibrate.fit.difficulty import detail_gain
from sparvar.calibrate.fit.per_image import fit_per_image
from sparvar.calibrate.fit.predict import choice_of
from sparvar.calibrate.measure.observation import largest_error
from sparvar.calibrate.measure.runner import Runner
from sparvar.calibrate.search.margin import EQUAL_DB, goal_db, shortfall_db, slack_db
from sparvar.calibrate.search.problem import Problem
from sparvar.calibrate.search.solver import solve
from sparvar.calibrate.search.trials import Held, SearchResult, Trial, leaves_nothing_out
from sparvar.errors import SparvarError, message

CLOSE_DB = 0.5
"""Slack beyond what is needed, in dB, that is not worth another round."""
FIRST_MARGIN = 1.0
"""Slack in dB of the first round, which knows no spread yet."""
NO_LIMIT = 100.0
"""A larger MSE than any image can have, whose values lie in [0, 1]."""
MORE_ROUNDS = 2
"""Rounds more where none of the first passed: what they taught brings the next nearer, and else the plan is dense."""
ATTEMPTS = 3
"""Sets of held-out images before a calibration gives up for the dense plan."""
FRONT = range(24, 41, 2)
"""PSNR in dB of the Pareto front that reports draw."""


class Loop:
    """Searches a problem under a budget; `run`, or `search` and then `confirm`.

    With ``per_image`` the plan that is found may leave out scales of images that do not need them.

    Attributes:
        chosen: the plan as it stands.
        trials: every plan that was run on check images.
        mse_ratio: measured image MSE of the last trial by the solver's.
        seconds_off: seconds that trials took more than the solver said.
        attempt: sets of held-out images that missed the budget.
        more_db: slack that is asked for since they did.
    """

    def __init__(
        self, runner: Runner, problem: Problem, budget: Budget, effort: Effort, per_image: bool = False
    ) -> None:
        self.runner, self.problem, self.budget, self.effort = runner, problem, budget, effort
        self.per_image = per_image
        self.per_image_record: dict[str, Any] | None = None
        self.mse_ratio, self.seconds_off = 1.0, 0.0
        self.trials: list[Trial] = []
        self.attempt, self.more_db = 0, 0.0
        self.max_error = budget.max_error
        self.cases = problem.cases(self.max_error)
        self.chosen = self._dense()

    def run(self) -> SearchResult:
        """Search, and confirm what was found. Raises as `search` does."""
        held = self.confirm(self.search())
        return SearchResult(
            self.chosen, held, tuple(self.trials), self._front(), self._nearest_run(), self.per_image_record
        )

    def _dense(self) -> Trial:
        start = self.problem
        return Trial(start.start, start.start_mse, start.start_seconds, True, None)

    def _solve(self, image_mse: float | None, seconds: float | None = None) -> Trial:
        """The best plan for a limit of the solver's image MSE, or of seconds; dense where there is none."""
        dense = self.problem.start_seconds
        more = None if seconds is None else seconds - dense - self.seconds_off
        answer = solve(self.cases, len(self.problem.base.layers), max_image_mse=image_mse, max_seconds=more)
        if answer is None:
            return self._dense()
        choice = choice_of(self.problem.space, answer)
        plan = plan_of(self.problem.start, self.problem.space, choice)
        if leaves_nothing_out(plan) or (image_mse is not None and answer.seconds >= 0):
            return self._dense()
        predicted = dense + answer.seconds + self.seconds_off
        return Trial(plan, answer.image_mse * self.mse_ratio, predicted, answer.exact, None, answer.seconds, choice)

    def _run_trial(self, trial: Trial) -> Trial:
        """Run a plan on the check images and learn from it what the prediction missed."""
        measured = self.runner.measure(trial.plan, "check", self.effort.checks)
        solved = trial.image_mse / self.mse_ratio
        done = dataclasses.replace(trial, measured=measured)
        self.trials.append(done)
        if solved > 0:
            self.mse_ratio = measured.image_mse / solved
        if self.problem.timed:
            self.seconds_off += measured.median_seconds - trial.seconds
        return done

    def _seconds(self, trial: Trial) -> float:
        """Seconds of a trial: measured where it was run on the machine that they are of."""
        if self.problem.timed and trial.measured is not None:
            return trial.measured.median_seconds
        return trial.seconds

    def search(self) -> Trial:
        """The cheapest plan that the checks let through.

        Raises:
            SparvarError: no plan is within the seconds, or none within all budgets; the nearest are named.
        """
        if self.budget.bounds_images or self.budget.max_error is not None:
            self.chosen = self._by_quality()
        else:
            self.chosen = self._by_seconds()
        if self.per_image:
            self.chosen = self._choose_per_image(self.chosen)
        most = self.budget.max_seconds
        if most is not None and self._seconds(self.chosen) > most:
            asked = self._asked()
            # Without a bound on quality it is the fastest plan of all that is too slow.
            got = f"{self._seconds(self.chosen if asked else self._solve(NO_LIMIT)):.2f} s at best"
            within = f" within {asked}" if asked else ""
            raise SparvarError(message("plan", f"take at most {most:g} s{within}", got, self._nearest(most)))
        return self.chosen

    def _asked(self) -> str:
        budget = self.budget
        asked = {"dB": budget.min_psnr, "SSIM": budget.min_ssim, "relative output error": budget.max_error}
        return " and ".join(f"{value:g} {name}" for name, value in asked.items() if value is not None)

    def _nearest(self, seconds: float) -> str:
        """In words, the best that is within ``seconds``, and the fastest of all."""
        within, fastest = self._solve(None, seconds), self._solve(NO_LIMIT)
        parts = []
        if not leaves_nothing_out(within.plan):
            parts.append(f"in {seconds:g} s the best plan is predicted at {within.predicted()['psnr_db']:.1f} dB")
        else:
            shown = fastest.predicted()
            parts.append(f"the fastest plan is predicted at {shown['seconds']:.2f} s and {shown['psnr_db']:.1f} dB")
        best = min(self.trials, key=self._seconds, default=None)
        if best is not None and best.measured is not None:
            run = f"{self._seconds(best):.2f} s at {best.measured.mean_psnr:.1f} dB"
            parts.append(f"the fastest that was run took {run}")
        return "; ".join(parts) + "; give more time, or less quality"

    def _nearest_run(self) -> str | None:
        """In words, of the sparse plans that were run and missed the budget the one with the best images, or None."""
        run = [trial.measured for trial in self.trials if trial.measured is not None]
        if not self.chosen.plan.all_dense or not run:
            return None
        best = max(run, key=lambda measured: measured.mean_psnr)
        seconds = f" in {best.median_seconds:.2f} s" if self.problem.timed else ""
        return f"a sparse plan that was run reached {best.mean_psnr:.1f} dB{seconds}, without room for other images"

    def _by_quality(self) -> Trial:
        passed: list[tuple[float, Trial]] = []
        good, bad = 0.0, math.inf
        limit = NO_LIMIT
        if self.budget.bounds_images:
            goal = goal_db(self.budget, self.runner.ssim_line)
            limit = 10 ** (-(goal + self.more_db + FIRST_MARGIN) / 10) / self.mse_ratio
        for number in range(self.effort.rounds + MORE_ROUNDS):
            if number >= self.effort.rounds and passed:
                break
            trial = self._solve(limit)
            if leaves_nothing_out(trial.plan):
                break
            if any(trial.plan.digest == other.plan.digest for _, other in passed):
                break
            self.runner.progress.step(
                f"round {number + 1}: running a plan predicted at {trial.predicted()['psnr_db']:.1f} dB"
            )
            trial = self._run_trial(trial)
            assert trial.measured is not None
            if not self.budget.bounds_images:
                passed.append((trial.gain, trial))  # every candidate of it is within the error
                break
            slack = self._slack(trial)
            if slack >= 0:
                passed.append((trial.gain, trial))
                good = max(good, limit)
            else:
                bad = min(bad, limit)
            if 0 <= slack <= CLOSE_DB:
                break
            # The ratio has just been set: what this plan measured is what the solver's MSE of it stands for.
            limit = 10 ** (-(trial.measured.mean_psnr - slack) / 10) / self.mse_ratio
            if not good < limit < bad:  # the correction jumps past what is known: halve the rest
                limit = math.sqrt(good * bad) if good > 0 and bad < math.inf else (bad / 2 if good == 0 else good * 2)
        # By the cost table, not by seconds of the rounds: the same table must give the same plan.
        return min(passed, key=lambda entry: entry[0])[1] if passed else self._dense()

    def _slack(self, trial: Trial) -> float:
        """dB that a trial has above the budget, its margin, and what held-out images have missed so far."""
        assert trial.measured is not None
        return slack_db(trial.measured, self.budget, self.effort, self.runner.ssim_line) - self.more_db

    def _choose_per_image(self, trial: Trial) -> Trial:
        """The plan with a choice per image of the scales that it needs, where that keeps the budget on other images."""
        budget, count = self.budget, self.effort.checks
        least = None if budget.min_psnr is None else budget.min_psnr + self.more_db
        fitted = fit_per_image(self.runner, trial.plan, count, least, budget.min_ssim)
        self.per_image_record = {**fitted.record, "adopted": False}
        if fitted.plan is None:
            return trial
        self.runner.progress.step("running the plan with its choice per image")
        measured = self.runner.measure(fitted.plan, "check", count, count)
        chosen = dataclasses.replace(
            trial, plan=fitted.plan, image_mse=measured.image_mse, measured=measured, begin=count
        )
        slack = self._slack(chosen)
        self.per_image_record |= {"checked": measured.as_dict(), "slack_db": slack, "adopted": slack >= 0}
        if slack < 0:
            self.per_image_record["why"] = "with the choice, other images are too near to the budget"
            return trial
        return dataclasses.replace(chosen, seconds=self._seconds(chosen))

    def _by_seconds(self) -> Trial:
        most = self.budget.max_seconds
        assert most is not None
        best = self._dense()
        if best.seconds <= most:
            return best
        for number in range(self.effort.rounds):
            trial = self._solve(None, most)
            if leaves_nothing_out(trial.plan):
                break
            self.runner.progress.step(f"round {number + 1}: running a plan predicted at {trial.seconds:.2f} s")
            if any(trial.plan.digest == other.plan.digest for other in self.trials):
                break
            trial = best = self._run_trial(trial)
            if self._seconds(trial) <= most:
                break
        return best

    def confirm(self, best: Trial) -> Held:
        """Run the plan on held-out images; where they miss the budget, ask more and take new ones, at most twice."""
        count = self.effort.held_out
        self.chosen = best
        while True:
            self.runner.progress.step("held-out images")
            psnr_db, detail_gain = self._predict(self.attempt * count)
            held = self.runner.measure(self.chosen.plan, "held", count, self.attempt * count)
            error = self._site_error()
            missed = shortfall_db(held, self.budget, self.runner.ssim_line)
            beyond = error is not None and self.budget.max_error is not None and error > self.budget.max_error
            if not (missed > 0 or beyond) or self.chosen.plan.all_dense:
                return Held(held, error, self.attempt + 1, psnr_db, detail_gain, self._seconds(self.chosen))
            if leaves_nothing_out(self.chosen.plan):
                must = f"keep {self._asked()} on held-out images"
                got = f"{missed:.2f} dB less with a compressed cache alone"
                raise SparvarError(message("plan", must, got, "allow a larger cache, or less quality"))
            self.attempt += 1
            if self.attempt == ATTEMPTS:
                self.chosen = self._dense()
                continue
            self.more_db += missed + CLOSE_DB if missed > 0 else 0.0
            if beyond:
                assert error is not None and self.budget.max_error is not None and self.max_error is not None
                self.max_error *= 0.95 * self.budget.max_error / error
                self.cases = self.problem.cases(self.max_error)
            self.chosen = self.search()

    def _predict(self, begin: int) -> tuple[float, float]:
        """(PSNR, dB of it that detail makes) of held-out images from ``begin`` on, whose dense ones are known."""
        chosen, count = self.chosen, self.effort.held_out
        if chosen.measured is None:
            return chosen.predicted()["psnr_db"], 0.0
        psnr = [min(value, EQUAL_DB) for value in chosen.measured.psnr]
        known = self.runner.details("check", len(psnr), chosen.begin)
        gain = detail_gain(known, psnr, self.runner.details("held", count, begin))
        return statistics.mean(psnr) + gain, gain

    def _site_error(self) -> float | None:
        """Largest relative output error of a site under the chosen plan, on a held-out seed."""
        if self.budget.max_error is None or self.chosen.choice is None:
            return None
        return largest_error(self.runner, self.problem.space, self.chosen.plan, self.chosen.choice, self.attempt)

    def _front(self) -> list[dict[str, float]]:
        """Predicted seconds of the best plan at a row of PSNRs, with what the rounds have corrected."""
        trials = ((psnr, self._solve(10 ** (-psnr / 10) / self.mse_ratio)) for psnr in FRONT)
        return [{"psnr_db": float(psnr), "seconds": trial.seconds} for psnr, trial in trials]
