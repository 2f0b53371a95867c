"""The steps of a calibration: observe, time, fit, search and confirm, and compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.candidates.candidate import Setting
from sparvar.calibrate.candidates.compression import choose_compression
from sparvar.calibrate.candidates.space import SETTINGS_KEPT, Space
from sparvar.calibrate.fit.predict import best_settings
from sparvar.calibrate.fit.thresholds import choose_thresholds
from sparvar.calibrate.measure import costs as cost_tables
from sparvar.calibrate.measure.cache import write_cache
from sparvar.calibrate.measure.costs import CostTable
from sparvar.calibrate.measure.effects import measure_effects
from sparvar.calibrate.measure.measured import Measured
from sparvar.calibrate.measure.observation import observe
from sparvar.calibrate.measure.observe import merged
from sparvar.calibrate.measure.probes import Probes
from sparvar.calibrate.measure.runner import Runner
from sparvar.calibrate.measure.target_gpu import target_costs, work_outside_attention
from sparvar.calibrate.options import CalibrationOptions
from sparvar.calibrate.outcome import comparison_plans, finished_plan
from sparvar.calibrate.search.decisions import decisions_record
from sparvar.calibrate.search.loop import Loop
from sparvar.calibrate.search.problem import Problem
from sparvar.calibrate.search.trials import SearchResult
from sparvar.errors import SparvarError, message
from sparvar.kernels import Gpu, Work
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Finished:
    """What a pipeline ends with.

    Attributes:
        problem: what the search chose from.
        found: what it chose.
        others: name to held-out images of plans that the found one is compared with.
        plan: the found one, with its figures.
        decisions: see `decisions_record`.
        pruning: see `choose_thresholds`.
    """

    problem: Problem
    found: SearchResult
    others: Mapping[str, Measured]
    plan: Plan
    decisions: dict[str, Any]
    pruning: dict[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """One calibration whose journal is open; made by `sparvar.calibrate.start_calibration`.

    Attributes:
        runner: draws, and keeps what it measured.
        space: which columns and windows are tried.
        budget: what the plan must keep to.
        effort: how fine the search is.
        options: the user's.
        gpu: whose seconds are predicted; None for this machine's.
        begun: when calibration began, by `time.monotonic`.
    """

    runner: Runner
    space: Space
    budget: Budget
    effort: Effort
    options: CalibrationOptions
    gpu: Gpu | None
    begun: float

    def run(self) -> Finished:
        """All steps.

        Raises:
            SparvarError: no plan meets all budgets (the nearest is named), or no time is left.
        """
        problem = self.prepare()
        found = Loop(self.runner, problem, self.budget, self.effort, self.options.per_image).run()
        others = self._others(found.held.attempts - 1)
        thresholds, pruning = choose_thresholds(
            problem.sites, problem.base, problem.sensitivity, found.chosen.image_mse
        )
        plan = finished_plan(found.chosen, found.held, thresholds, self.budget, self.gpu, self.runner.model.device)
        decisions = decisions_record(plan)
        if decisions["problems"]:
            raise SparvarError(message("decisions of the plan", "serve every site", "; ".join(decisions["problems"])))
        return Finished(problem, found, others, plan, decisions, pruning)

    def prepare(self) -> Problem:
        """Everything that is measured before the search."""
        runner, effort = self.runner, self.effort
        space, screened = self._screen()
        records = []
        for number in range(effort.observed):
            runner.progress.step(f"observing generation {number + 1} of {effort.observed}")
            records.append(observe(runner, "observe", space, number))
        sites, rows = merged([record["sites"] for record in records]), int(records[0]["rows"])
        probes = Probes(runner, space, effort, sites)
        sensitivity = probes.sensitivity()
        costs, cached = self._costs(probes, rows)
        problem = Problem(
            runner.base,
            space,
            sites,
            costs,
            sensitivity,
            timed=self.gpu is None,
            screened=screened,
            costs_cached=cached,
        )
        if self.options.reduce and self.gpu is None and self.budget.max_error is None:
            prune = self.budget.max_kv is None
            problem = replace(problem, effects=measure_effects(runner, effort, prune=prune, skip=self.options.skip))
        if self.budget.max_kv is not None:
            # Two images at least: whether the cache may be so small at all is told from them.
            count = max(2, effort.probes)
            compression = choose_compression(runner, self.budget.max_kv, count, self.budget.min_psnr)
            dense = runner.time_dense(runner.base, effort.probes) if problem.timed else None
            problem = replace(problem, compression=compression, dense=dense)
        return problem

    def _screen(self) -> tuple[Space, dict[Setting, float]]:
        """The space with the settings that lose least, and the squared relative error of all."""
        base, space = self.runner.base, self.space
        self.runner.progress.step(f"comparing {len(space.settings)} index maps, sink spans and windows")
        screening = space.screening(base.scales)
        sites = merged([observe(self.runner, "screen", screening, 0, full=False)["sites"]])
        kept, scores = best_settings(sites, base, screening, SETTINGS_KEPT)
        return space.narrowed(kept), scores

    def _costs(self, probes: Probes, rows: int) -> tuple[CostTable, bool]:
        """The table, and whether an earlier calibration has measured it."""
        runner, space = self.runner, probes.space
        base, model = runner.base, runner.model
        if self.gpu is not None:
            return self._roofline(self.gpu, space, rows), False
        file = cost_tables.costs_file(base, space, rows, model.device, model.inner)
        known = cost_tables.load(file)
        if known is not None:
            return known, True
        runner.progress.step("timing the ops on this machine")

        def measure() -> dict[str, Any]:
            return cost_tables.measure(base, space, rows, model.device, model.dtype).as_dict()

        table = probes.corrected(CostTable.of(runner.journal.get("costs", measure)))
        write_cache(file, table.as_dict())
        return table, False

    def _roofline(self, gpu: Gpu, space: Space, rows: int) -> CostTable:
        runner = self.runner
        runner.progress.step(f"working out the roofline of {gpu.name}")
        subject, prompt = runner.images.subject, runner.images.prompts[0]

        def count() -> list[float]:
            runner.model.detach()
            scales = runner.base.scales
            work = work_outside_attention(subject.model, lambda: subject.draw(subject.model, prompt, 0), scales)
            return [work.flops, work.bytes]

        flops, moved = runner.journal.get("elsewhere", count)
        return target_costs(runner.base, space, rows, gpu, Work(flops, moved, launches=0), progress=runner.progress)

    def _others(self, attempt: int) -> dict[str, Measured]:
        """The paper's fixed setting, and the shipped plan where there is one, on the held-out images."""
        runner, count = self.runner, self.effort.held_out
        found = {}
        for name, plan in comparison_plans(runner.base, shipped=self.effort.fine).items():
            runner.progress.step(f"held-out images of the {name} plan")
            found[name] = runner.measure(plan, "held", count, attempt * count)
        return found
