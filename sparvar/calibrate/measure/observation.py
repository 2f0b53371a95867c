"""Whole generations beside which candidates are measured, each kept in the journal."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sparvar.backend import compile
from sparvar.calibrate.candidates.space import Choice, Space
from sparvar.calibrate.fit.predict import candidates_of, relative_errors
from sparvar.calibrate.measure.observe import Observer, as_record, merged
from sparvar.calibrate.measure.pruning import PruningSums, representative_scale
from sparvar.calibrate.measure.runner import Runner
from sparvar.heap import mmap_large_blocks
from sparvar.scale_plans import Plan


def observe(
    runner: Runner, key: str, space: Space, number: int, stage: str = "observe", full: bool = True
) -> dict[str, Any]:
    """What an `Observer` of a space saw in one generation: ``rows`` (of the batch) and ``sites`` (see `merged`).

    Args:
        runner: draws.
        key: of the journal.
        space: its candidates are measured.
        number: of the image of the stage.
        stage: see `Images`.
        full: adds entropies, sinks, windows and pruning at every scale.
    """

    def measure() -> dict[str, Any]:
        base, model = runner.base, runner.model
        model.detach()
        # Candidates run op by op beside dense attention: compiling the rest would only take time.
        compile(model.model, base, inner="eager")
        pruning = PruningSums(base, representative_scale(base)) if full else None
        observer = Observer(base, space, pruning, number)
        try:
            with mmap_large_blocks(), model.attachment.hooked(observer):
                runner.images.draw(stage, number)
        finally:
            model.detach()
        return {"rows": observer.rows, "sites": as_record(observer.sites)}

    record: dict[str, Any] = runner.journal.get(f"{key}/{number}", measure)
    return record


def largest_error(runner: Runner, space: Space, plan: Plan, choice: Choice, number: int) -> float:
    """Largest relative output error of a site under a plan, measured beside dense attention on a held-out image."""
    assert choice.decision is not None or choice.windows
    budgets = tuple(sorted({budget for _, budget in choice.budgets}))
    first = choice.correction_budget
    own = dataclasses.replace(
        space,
        decisions=(choice.decision if choice.decision is not None else min(space.decisions),),
        settings=(choice.setting,),
        budgets=budgets,
        firsts=() if first is None else (first,),
    )
    record = observe(runner, f"error/{plan.digest}", own, number, "held", full=False)
    sites = merged([record["sites"]])
    layers = len(plan.layers)
    return max(
        math.sqrt(relative_errors(sites, scale, layers, candidate)[layer])
        for (scale, layer), candidate in candidates_of(plan, choice).items()
    )
