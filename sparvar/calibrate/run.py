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

from sparvar.calibrate import costs as cost_tables
from sparvar.calibrate.costs import CostTable
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.loop import Loop, Trial
from sparvar.calibrate.observe import merged
from sparvar.calibrate.predict import Sensitivity, Sites, cases, fit, kept_share, relative_errors
from sparvar.calibrate.runner import Measured, Runner
from sparvar.calibrate.space import Choice, Space, cs4a_key, default_space, plan_of
from sparvar.calibrate.subject import Subject
from sparvar.errors import OptionError, message
from sparvar.scale_plans import Plan, Provenance, default_plan, find_plan
from sparvar.version import __version__

PROBE_BUDGETS = (0.05, 0.2)
LAYER_BUDGET = 0.05
LAYER_GROUPS = 6
"""Layers are probed alone, or in as many groups of neighbours."""


@dataclass(frozen=True)
class Budget:
    """What a plan must keep to: least mean PSNR against dense in dB, most median seconds of an image, or both."""

    min_psnr: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.min_psnr is None and self.max_seconds is None:
            raise OptionError(message("budget", "be stated", "none", "give --min-psnr, --max-seconds or both"))
        for name, value in (("--min-psnr", self.min_psnr), ("--max-seconds", self.max_seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise OptionError(message(name, "be a finite number above 0", value))


@dataclass(frozen=True)
class Effort:
    """Generations of every step."""

    observed: int = 2
    probes: int = 2
    checks: int = 8
    held_out: int = 8
    rounds: int = 6


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
    inner: str = "inductor",
    effort: Effort | None = None,
    resume: bool = False,
    seconds_in_all: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Find the cheapest plan that meets a budget on this machine.

    Args:
        subject: the model and how to draw with it; given back as it was.
        prompts: what calibration draws, in turn.
        budget: see `Budget`.
        work: folder of the journal; one calibration at a time.
        seed: of everything random; the same seed and cost table give the same plan for a PSNR budget.
        inner: compiler of the plans that are timed.
        effort: generations per step.
        resume: go on with the journal of a run that was stopped.
        seconds_in_all: stop with an error, to be resumed, when this time is used up.
        say: gets a line before each step.

    Raises:
        OptionError: no prompts, or a journal of another run.
        SparvarError: NaN in the model, no time left, or no plan meets both budgets (the nearest is named).
        OutputError: the journal cannot be written, or another run holds it.
    """
    if not prompts:
        raise OptionError(message("prompts", "hold at least one", "none", "write one label or JSON value per line"))
    effort = effort or Effort()
    begun = time.monotonic()
    deadline = None if seconds_in_all is None else begun + seconds_in_all
    base = subject.base_plan()
    space = default_space(base)
    header = {
        "tool": f"sparvar {__version__}",
        "torch": torch.__version__,
        "model": base.model.fingerprint,
        "weights": _weights(subject),
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "seed": seed,
        "inner": inner,
        "space": repr(space),
    }
    with Journal(work, header, resume) as journal:
        runner = Runner(subject, base, prompts, journal, seed, inner, deadline, say)
        try:
            return _Steps(runner, base, space, budget, effort, say).run(begun)
        finally:
            runner.close()


def _weights(subject: Subject) -> str:
    digest = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Steps:
    def __init__(
        self, runner: Runner, base: Plan, space: Space, budget: Budget, effort: Effort, say: Callable[[str], None]
    ) -> None:
        self.runner, self.base, self.space, self.budget = runner, base, space, budget
        self.effort, self.say = effort, say
        self.layers = len(base.layers)

    def run(self, begun: float) -> Calibration:
        sites, rows = self._observe()
        table, cached = self._costs(sites, rows)
        sensitivity = self._sensitivity(sites)
        self._whole_generations(table, sites, cached)
        problem = cases(self.base, self.space, sites, table, sensitivity)
        loop = Loop(
            self.runner, self.base, self.space, problem, self.budget, self.effort, table.dense_seconds, self.say
        )
        best = loop.search()
        held, attempts = loop.confirm(best)
        others = self._others(loop.attempt)
        plan = self._finished(loop.chosen, held)
        report = {
            "budget": dataclasses.asdict(self.budget),
            "plan": json.loads(plan.dumps()),
            "digest": plan.digest,
            "predicted": loop.chosen.predicted(),
            "checked": loop.chosen.measured.as_dict() if loop.chosen.measured else None,
            "held_out": held.as_dict(),
            "held_out_attempts": attempts,
            "all_dense": plan.planned_sites() == 0,
            "trials": [trial.as_dict() for trial in loop.trials],
            "front": loop.front(),
            "others": {name: found.as_dict() for name, found in others.items()},
            "costs": table.as_dict(),
            "costs_cached": cached,
            "sensitivity": dataclasses.asdict(sensitivity),
            "sites": _facts(sites, self.space, self.layers),
            "machine": {"device": table.device, "torch": torch.__version__, "sparvar": __version__},
            "calibration_seconds": time.monotonic() - begun,
        }
        return Calibration(plan, report)

    def _observe(self) -> tuple[Sites, int]:
        records = []
        for number in range(self.effort.observed):
            self.say(f"observing generation {number + 1} of {self.effort.observed}")
            records.append(self.runner.observe(self.space, number))
        return merged([record["sites"] for record in records]), int(records[0]["rows"])

    def _costs(self, sites: Sites, rows: int) -> tuple[CostTable, bool]:
        parameter = next(self.runner.subject.model.parameters())
        self._cost_file = cost_tables.cache_file(self.base, self.space, rows, parameter.device, self.runner.inner)
        known = cost_tables.load(self._cost_file)
        if known is not None:
            return known, True
        self.say("timing the ops on this machine")

        def measure() -> dict[str, Any]:
            return cost_tables.measure(self.base, self.space, rows, parameter.device, parameter.dtype).as_dict()

        return CostTable.of(self.runner.journal.get("costs", measure)), False

    def _alone(self, scale: int, budget: float, layers: Sequence[int]) -> tuple[Plan, str]:
        """A plan in which ``layers`` are sparse at one scale alone, and the name of its candidate."""
        before = [decision for decision in self.space.decisions if decision < scale]
        decision = before[len(before) // 2]
        policies = tuple("cs4a" if layer in layers else "dense" for layer in range(self.layers))
        index_map = self.space.maps[0]
        choice = Choice(policies, decision, index_map, budgets=((scale, budget),))
        return plan_of(self.base, self.space, choice), cs4a_key(decision, index_map, budget, None)

    def _targets(self) -> range:
        return range(self.space.first, self.base.scales + 1)

    def _sensitivity(self, sites: Sites) -> Sensitivity:
        every = range(self.layers)
        by_scale: dict[int, list[tuple[str, float]]] = {}
        for scale in self._targets():
            self.say(f"how much scale {scale} matters")
            for budget in PROBE_BUDGETS:
                plan, name = self._alone(scale, budget, every)
                found = self.runner.measure(plan, "probe", self.effort.probes)
                by_scale.setdefault(scale, []).append((name, found.damage))
        at = max(self.space.first, self.base.scales - 1)
        groups: dict[tuple[int, ...], float] = {}
        size = math.ceil(self.layers / LAYER_GROUPS)
        name = ""
        for start in range(0, self.layers, size):
            group = tuple(range(start, min(start + size, self.layers)))
            self.say(f"how much layers {group[0]} to {group[-1]} matter")
            plan, name = self._alone(at, LAYER_BUDGET, group)
            groups[group] = self.runner.measure(plan, "probe", self.effort.probes).damage
        return fit(sites, self.layers, by_scale, (at, name, groups))

    def _whole_generations(self, table: CostTable, sites: Sites, cached: bool) -> None:
        """Set what only whole generations show: their seconds, and what a sparse site's graph costs besides its op."""
        if cached:
            return
        self.say("timing dense generations")
        table.dense_seconds = self.runner.measure(self.base, "probe", max(2, self.effort.probes)).median_seconds
        for scale in self._targets():
            gaps = []
            for budget in PROBE_BUDGETS:
                plan, name = self._alone(scale, budget, range(self.layers))
                found = self.runner.measure(plan, "probe", self.effort.probes).median_seconds
                assert plan.decision_scale is not None
                decide = table.decide[plan.decision_scale] - table.dense[plan.decision_scale]
                site = table.cs4a(scale, kept_share(sites, scale, self.layers, name), False) - table.dense[scale]
                gaps.append((found - table.dense_seconds) / self.layers - decide - site)
            table.extra[scale] = statistics.mean(gaps)
        cost_tables.save(self._cost_file, table)

    def _others(self, attempt: int) -> dict[str, Measured]:
        """The paper's fixed setting, and the shipped plan where there is one, on the held-out images."""
        base = self.base
        model = base.model
        plans = {
            "paper": default_plan(
                base.schedule,
                model.sites,
                heads=model.heads,
                head_dim=model.head_dim,
                dtype=model.dtype,
                fingerprint=model.fingerprint,
                prefix=base.prefix,
                tile=base.tile,
            )
        }
        shipped = find_plan(model.fingerprint)
        if shipped is not None:
            plans["shipped"] = shipped
        found = {}
        for name, plan in plans.items():
            self.say(f"held-out images of the {name} plan")
            begin = attempt * self.effort.held_out
            found[name] = self.runner.measure(plan, "held", self.effort.held_out, begin)
        return found

    def _finished(self, chosen: Trial, held: Measured) -> Plan:
        figures = {
            "psnr_db": round(held.mean_psnr, 3),
            "predicted_psnr_db": round(chosen.predicted()["psnr_db"], 3),
            "seconds": round(held.median_seconds, 4),
            "predicted_seconds": round(chosen.predicted()["seconds"], 4),
        }
        asked = ", ".join(
            f"{name} {value:g}" for name, value in dataclasses.asdict(self.budget).items() if value is not None
        )
        note = f"the cheapest found for {asked}"
        if chosen.plan.planned_sites() == 0:
            note = f"all dense: no sparse plan met {asked}"
        return chosen.plan.replace(
            measured=figures,
            provenance=Provenance(
                calibrated=True,
                tool=f"sparvar {__version__} calibrate",
                torch=torch.__version__,
                device=str(next(self.runner.subject.model.parameters()).device),
                note=note,
            ),
        )


def _facts(sites: Sites, space: Space, layers: int) -> list[dict[str, Any]]:
    """Per scale and layer: entropy per head (nats), share of low-entropy queries, sink mass, candidates' figures."""
    found = []
    for (scale, layer), sums in sorted(sites.items()):
        calls = sums["calls"][0]
        found.append(
            {
                "scale": scale,
                "layer": layer,
                "entropy": [value / calls for value in sums["entropy"]],
                "rho": sums["rho"][0] / calls,
                "sink_mass": [value / calls for value in sums["sink"]],
                "relative_error": {
                    name: math.sqrt(relative_errors(sites, scale, layers, name)[layer]) for name in sums["errors"]
                },
                "relative_error_by_head": {
                    name: [math.sqrt(e / max(n, 1e-30)) for e, n in zip(errors, sums["norm"], strict=True)]
                    for name, errors in sums["errors"].items()
                },
                "recall": {name: values[0] / calls for name, values in sums["recall"].items()},
                "kept": {name: values[0] / calls for name, values in sums["kept"].items()},
            }
        )
    return found
