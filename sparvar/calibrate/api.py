"""Calibration from end to end: observe, time, fit, solve, and run the plan until the budget is met and shown to be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.candidates.candidate import Candidate, ColumnCandidate
from sparvar.calibrate.candidates.compression import Compression, choose_compression, compressed_cases
from sparvar.calibrate.candidates.reductions import Effects, as_record, expanded
from sparvar.calibrate.candidates.space import SETTINGS_KEPT, Choice, Space, default_space, plan_of
from sparvar.calibrate.facts import facts
from sparvar.calibrate.fit.predict import Sensitivity, Sites, cases, fit, kept_share, preferred
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.measure import costs as cost_tables
from sparvar.calibrate.measure.costs import CostTable
from sparvar.calibrate.measure.dense_time import pace, settle
from sparvar.calibrate.measure.effects import measure_effects
from sparvar.calibrate.measure.observe import merged
from sparvar.calibrate.measure.pruning import choose_thresholds
from sparvar.calibrate.measure.runner import Measured, Runner
from sparvar.calibrate.measure.target_gpu import TARGET_DTYPE, elsewhere, target_costs
from sparvar.calibrate.outcome import comparison_plans, finished_plan
from sparvar.calibrate.search.decisions import decisions_record
from sparvar.calibrate.search.loop import Loop
from sparvar.calibrate.search.solver import Case
from sparvar.errors import OptionError, SparvarError, message
from sparvar.kernels import Gpu, find_gpu
from sparvar.models.subject import Subject
from sparvar.scale_plans import Plan, held_share
from sparvar.version import __version__

PROBE_BUDGETS = (0.05, 0.2)
LAYER_BUDGET = 0.05
LAYER_GROUPS = 3
"""Layers are probed in as many groups of neighbours."""


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        plan: the cheapest plan found that meets the budget, with what was measured.
        report: everything for ``calibration.json``.
    """

    plan: Plan
    report: dict[str, Any]


def calibrate(
    subject: Subject,
    prompts: Sequence[Any],
    budget: Budget,
    work: Path,
    *,
    seed: int = 0,
    inner: str = "auto",
    effort: Effort | None = None,
    images: int | None = None,
    target: str | None = None,
    resume: bool = False,
    reduce: bool = True,
    skip: bool = False,
    per_image: bool = False,
    seconds_in_all: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    chosen: Callable[[Effort], None] = lambda effort: None,
) -> Calibration:
    """Find the cheapest plan that meets a budget on this machine.

    Args:
        subject: the model and how to draw with it; given back as it was.
        prompts: what calibration draws, in turn; held-out images have some for themselves, see `split_prompts`.
        budget: see `Budget`.
        work: folder of the journal; one calibration at a time.
        seed: of everything random; the same seed and cost table give the same plan for a budget without seconds.
        inner: compiler of the plans that are timed; "auto" is "inductor", or "eager" on a processor, where compiling
            takes minutes and memory and saves dense images 1 % and fast plans about 9 %.
        effort: generations per step; None chooses the most that ten minutes allow, by what a dense image takes.
        images: that check a plan, and as many held out, in place of the effort's.
        target: name of a GPU: seconds are then those of its roofline, predicted and not measured.
        resume: go on with the journal of a run that was stopped.
        reduce: tokens and unconditional rows may be left out, too; not with ``target`` or a budget of attention's
            error, which say nothing of them.
        skip: with ``reduce``, the last scales may be skipped, too. It saves most, and softens images more
            than PSNR says.
        per_image: the plan may leave out, image by image, last scales that a logistic model of two image features says
            are not needed; needs a budget of PSNR or SSIM.
        seconds_in_all: stop with an error, to be resumed, when this time is used up.
        say: gets a line before each step.
        chosen: gets the effort, before the first step.

    Raises:
        OptionError: no prompts, a journal of another run, an unknown target, or SSIM asked where it cannot be had.
        SparvarError: NaN in the model, no time left, or no plan meets all budgets (the nearest is named).
        CaptureError: ``skip`` or ``per_image``, and the model's images cannot be decoded before its last scale.
        OutputError: the journal cannot be written, or another run holds it.
    """
    if not prompts:
        raise OptionError(message("prompts", "hold at least one", "none", "write one label or JSON value per line"))
    if per_image and budget.min_psnr is None and budget.min_ssim is None:
        must = "be asked with --min-psnr or --min-ssim, which say what an image needs"
        raise OptionError(message("--per-image", must, "neither"))
    if skip and (not reduce or target is not None or budget.max_error is not None):
        must = "be asked where calibration may leave out more than columns"
        given = "--columns-only" if not reduce else "--target" if target is not None else "--max-error"
        raise OptionError(message("--skip-scales", must, given, f"take {given} out"))
    begun = time.monotonic()
    deadline = None if seconds_in_all is None else begun + seconds_in_all
    gpu = None if target is None else find_gpu(target)
    base = base_plan(subject)
    space = default_space(base)
    header = {
        "tool": f"sparvar {__version__}",
        "torch": torch.__version__,
        "model": base.model.fingerprint,
        "weights": subject.digest(),
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "seed": seed,
        "space": repr(space),
    }
    with Journal(work, header, resume) as journal:
        runner = Runner(subject, base, prompts, prompts, journal, seed, inner, deadline, say)
        try:
            if effort is None:
                effort = Effort.within(pace(runner))
            if images is not None:
                effort = effort.with_images(images)
            settle(runner, effort)
            chosen(effort)
            space = space if effort.fine else space.coarse()
            return _Steps(runner, base, space, budget, effort, gpu, say, reduce, skip, per_image).run(begun)
        finally:
            runner.close()


class _Steps:
    def __init__(
        self,
        runner: Runner,
        base: Plan,
        space: Space,
        budget: Budget,
        effort: Effort,
        gpu: Gpu | None,
        say: Callable[[str], None],
        reduce: bool,
        skip: bool,
        per_image: bool,
    ) -> None:
        self.reduce, self.skip, self.per_image = reduce, skip, per_image
        self.runner, self.base, self.space, self.budget = runner, base, space, budget
        self.effort, self.gpu, self.say = effort, gpu, say
        self.layers = len(base.layers)

    def run(self, begun: float) -> Calibration:
        scores = self._screen()
        sites, rows = self._observe()
        sensitivity = self._sensitivity(sites)
        table, cached = self._costs(sites, rows)
        effects = self._reductions()
        compression = self._compression()
        dense = self._timed_dense() if compression is not None and self.gpu is None else None
        problem = _Problem(self.base, self.space, sites, table, sensitivity, effects, compression, dense)
        loop = Loop(
            self.runner,
            self.base if compression is None else compression.plan,
            self.space,
            problem,
            self.budget,
            self.effort,
            table.dense_seconds if compression is None or dense is None else compression.measured.median_seconds,
            self.say,
            timed=self.gpu is None,
            base_damage=0.0 if compression is None else compression.measured.damage,
            per_image=self.per_image,
        )
        best = loop.search()
        held = loop.confirm(best)
        others = self._others(held.attempts - 1)
        thresholds, pruning = choose_thresholds(
            sites,
            self.base,
            sensitivity.weights,
            sensitivity.factors,
            sensitivity.powers,
            loop.chosen.damage,
        )
        plan = finished_plan(loop.chosen, held, thresholds, self.budget, self.gpu, self.runner)
        decisions = decisions_record(plan)
        if decisions["problems"]:
            raise SparvarError(message("decisions of the plan", "serve every site", "; ".join(decisions["problems"])))
        report = {
            "budget": dataclasses.asdict(self.budget),
            "effort": dataclasses.asdict(self.effort),
            "target": None if self.gpu is None else self.gpu.name,
            "plan": json.loads(plan.dumps()),
            "digest": plan.digest,
            "predicted": held.foretold(),
            "checked": loop.chosen.measured.as_dict() if loop.chosen.measured else None,
            "held_out": {**held.measured.as_dict(), "max_error": held.error},
            "held_out_attempts": held.attempts,
            "new_prompts": self.runner.held_prompts != self.runner.prompts,
            "all_dense": plan.all_dense,
            "nearest": loop.nearest_run(),
            "trials": [trial.as_dict() for trial in loop.trials],
            "front": loop.front(),
            "others": {name: found.as_dict() for name, found in others.items()},
            "screened": scores,
            "decisions": decisions,
            "pruning": pruning,
            "left_out": None if effects is None else as_record(effects),
            "kv": None if compression is None else compression.as_record() | {"plan_held_share": held_share(plan)},
            "per_image": loop.choices,
            "costs": table.as_dict(),
            "costs_cached": cached,
            "sensitivity": dataclasses.asdict(sensitivity),
            "sites": facts(sites, self.layers),
            "machine": {"device": table.device, "torch": torch.__version__, "sparvar": __version__},
            "calibration_seconds": time.monotonic() - begun,
        }
        return Calibration(plan, report)

    def _screen(self) -> dict[str, float]:
        """Leave the settings in the space that lose least; the scores of all."""
        self.say(f"comparing {len(self.space.settings)} index maps, sink spans and windows")
        screening = self.space.screening(self.base.scales)
        sites = merged([self.runner.observe("screen", screening, 0, full=False)["sites"]])
        kept, scores = preferred(sites, self.base, screening, SETTINGS_KEPT)
        self.space = self.space.narrowed(kept)
        return scores

    def _observe(self) -> tuple[Sites, int]:
        records = []
        for number in range(self.effort.observed):
            self.say(f"observing generation {number + 1} of {self.effort.observed}")
            records.append(self.runner.observe("observe", self.space, number))
        return merged([record["sites"] for record in records]), int(records[0]["rows"])

    def _costs(self, sites: Sites, rows: int) -> tuple[CostTable, bool]:
        if self.gpu is not None:
            return self._roofline(self.gpu, rows), False
        parameter = next(self.runner.subject.model.parameters())
        file = cost_tables.cache_file(self.base, self.space, rows, parameter.device, self.runner.inner)
        known = cost_tables.load(file)
        if known is not None:
            return known, True
        self.say("timing the ops on this machine")

        def measure() -> dict[str, Any]:
            return cost_tables.measure(self.base, self.space, rows, parameter.device, parameter.dtype).as_dict()

        table = CostTable.of(self.runner.journal.get("costs", measure))
        self._whole_generations(table, sites)
        cost_tables.save(file, table)
        return table, False

    def _roofline(self, gpu: Gpu, rows: int) -> CostTable:
        self.say(f"working out the roofline of {gpu.name}")
        subject = self.runner.subject

        def count() -> list[float]:
            self.runner.detach()
            prompt = self.runner.prompts[0]
            return list(elsewhere(subject.model, lambda: subject.draw(subject.model, prompt, 0), self.base.scales))

        flops, moved = self.runner.journal.get("elsewhere", count)
        return target_costs(self.base, self.space, rows, gpu, TARGET_DTYPE, flops, moved, self.say)

    def _alone(self, scale: int, budget: float, layers: Sequence[int]) -> tuple[Plan, ColumnCandidate]:
        """A plan in which ``layers`` are sparse at one scale alone, and what runs there."""
        decision = max(decision for decision in self.space.decisions if decision < scale)
        policies = tuple("cs4a" if layer in layers else "dense" for layer in range(self.layers))
        setting = self.space.settings[0]
        choice = Choice(policies, setting, decision, budgets=((scale, budget),))
        return plan_of(self.base, self.space, choice), ColumnCandidate(decision, setting, budget)

    def _probe(self, plan: Plan) -> Measured:
        """Generations for what they lose, or for how their seconds compare with those of another probe."""
        return self.runner.measure(plan, "probe", self.effort.probes, inner="eager")

    def _targets(self) -> range:
        return range(self.space.first, self.base.scales + 1)

    def _probed(self) -> range:
        """Scales that are sparse alone in some generation: all that may be sparse, or the last two."""
        first = self.space.first
        return range(first if self.effort.fine else max(first, self.base.scales - 1), self.base.scales + 1)

    def _budgets(self, scale: int) -> tuple[float, ...]:
        """Budgets at which a scale alone is sparse: how much less more keys lose is seen at the last two scales."""
        seen = (self.base.scales - 1, self.base.scales) if self.effort.fine else (self.base.scales - 1,)
        return PROBE_BUDGETS if scale in seen else PROBE_BUDGETS[:1]

    def _sensitivity(self, sites: Sites) -> Sensitivity:
        every = range(self.layers)
        by_scale: dict[int, list[tuple[Candidate, float]]] = {}
        for scale in self._probed():
            self.say(f"how much scale {scale} matters")
            by_scale[scale] = []
            for budget in self._budgets(scale):
                plan, name = self._alone(scale, budget, every)
                by_scale[scale].append((name, self._probe(plan).damage))
        at = max(self.space.first, self.base.scales - 1)
        groups: dict[tuple[int, ...], float] = {}
        size = math.ceil(self.layers / LAYER_GROUPS)
        name = self._alone(at, LAYER_BUDGET, every)[1]
        for start in range(0, self.layers, size) if self.effort.fine else ():
            group = tuple(range(start, min(start + size, self.layers)))
            self.say(f"how much layers {group[0]} to {group[-1]} matter")
            plan, _ = self._alone(at, LAYER_BUDGET, group)
            groups[group] = self._probe(plan).damage
        return fit(sites, self.layers, by_scale, (at, name, groups)).of(self._targets())

    def _reductions(self) -> Effects | None:
        """What leaving out tokens and rows does, each alone; None where calibration may not leave any out."""
        if not self.reduce or self.gpu is not None or self.budget.max_error is not None:
            return None
        return measure_effects(
            self.runner,
            self.base,
            self.effort,
            self.say,
            prune=self.budget.max_kv is None,
            skip=self.skip,
        )

    def _compression(self) -> Compression | None:
        """The cache that the budget allows; None where it says nothing of it."""
        share = self.budget.max_kv
        if share is None:
            return None
        # Two images at least: whether the cache may be so small at all is told from them.
        probes = max(2, self.effort.probes)
        return choose_compression(self.runner, self.base, share, probes, self.budget.min_psnr, self.say)

    def _timed_dense(self) -> Measured:
        return self.runner.timed_dense(self.base, self.effort.probes)

    def _whole_generations(self, table: CostTable, sites: Sites) -> None:
        """Correct the table by what its sites took in whole generations.

        Machines drift: the seconds of a probe are compared with the dense ones by way of the scales that are dense in
        both. Neither is compiled, which the difference hardly shows: what is around attention is the same in both.
        """
        self.say("timing dense generations")
        dense = self._timed_dense()
        table.dense_seconds = dense.median_seconds
        if self.runner.dense_inner != "eager":
            dense = self._probe(self.base)
        decided: dict[int, list[float]] = {}
        for scale in self._probed():
            gaps = []
            for budget in self._budgets(scale):
                plan, name = self._alone(scale, budget, range(self.layers))
                took = self._probe(plan).took
                decision = plan.decision_scale
                assert decision is not None
                same = [number for number in dense.took if number not in (scale, decision)]
                drift = sum(took[number] for number in same) / sum(dense.took[number] for number in same)
                more = {at: (took[at] / drift - dense.took[at]) / self.layers for at in (scale, decision)}
                site = table.cs4a(scale, kept_share(sites, scale, self.layers, name), False) - table.dense[scale]
                gaps.append(more[scale] - site)
                decided.setdefault(decision, []).append(more[decision])
            table.extra[scale] = statistics.mean(gaps)
        for decision, found in decided.items():
            table.decide[decision] = table.dense[decision] + max(0.0, statistics.median(found))

    def _others(self, attempt: int) -> dict[str, Measured]:
        """The paper's fixed setting, and the shipped plan where there is one, on the held-out images."""
        found = {}
        for name, plan in comparison_plans(self.base, shipped=self.effort.fine).items():
            self.say(f"held-out images of the {name} plan")
            begin = attempt * self.effort.held_out
            found[name] = self.runner.measure(plan, "held", self.effort.held_out, begin)
        return found


@dataclass(frozen=True)
class _Problem:
    base: Plan
    space: Space
    sites: Sites
    table: CostTable
    sensitivity: Sensitivity
    effects: Effects | None
    compression: Compression | None
    dense: Measured | None

    def cases(self, max_error: float | None) -> list[Case]:
        found = cases(self.base, self.space, self.sites, self.table, self.sensitivity, max_error)
        if self.compression is not None:
            found = compressed_cases(found, self.compression, self.dense)
        return found if self.effects is None else expanded(found, self.effects.front(), self.effects)
