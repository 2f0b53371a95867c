"""What pruning saves on blocks of a published width: FLOPs promised, time found.

``python benchmarks/pruned_shape.py`` runs a few random-weight blocks of Infinity-2B's width over the one-megapixel
schedule, dense and at the setting that ToProVAR's speed-up needs, in turns on this machine; `sparvar bench methods
--shape infinity-2b` compares all methods this way. Whole models are too large for CPUs; every block of
a model does the same work, so that ratios carry over.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Annotated

import typer

import sparvar
from sparvar.evaluate.machine import machine
from sparvar.files import write_whole
from sparvar.scale_plans import Plan, Thresholds, toprovar
from sparvar.tools.bench.methods import MethodSettings
from sparvar.tools.bench.shape import ShapeBench
from sparvar.zoo.shaped import SCHEDULE_1M

OUT = Path(__file__).parent / "results" / "pruned-shape-cpu.json"
START = 4
"""Scales that prune, from the last: 32, 40, 48 and 64 of 64."""
PRUNED = 0.85
"""Pruned share of their tokens in detail layers at the last scale, which is what the paper's speed-up needs."""


def setting(plan: Plan) -> Plan:
    """ToProVAR with every layer a detail layer: the paper keeps a few global ones, here there are too few layers."""
    start = plan.scales + 1 - START
    thresholds = Thresholds(
        tau=0.4,
        beta=1.0,
        alpha_min=0.0,
        alpha_max=PRUNED,
        start=start,
        representative=6,
        scores=(1.0,) * len(plan.layers),
        min_keep=0.05,
    )
    return toprovar(plan, thresholds)


def main(
    shape: Annotated[str, typer.Option(help="Name of a published shape.")] = "infinity-2b",
    depth: Annotated[int, typer.Option(min=1, help="Blocks.")] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    scales: Annotated[int, typer.Option(help="Scales of the schedule, from the first; 13 is all.")] = 13,
    inner: Annotated[str, typer.Option(help="eager or inductor.")] = "eager",
    out: Path = OUT,
) -> None:
    """Print and write FLOPs and seconds of both."""
    schedule = SCHEDULE_1M[:scales]
    settings = MethodSettings(rounds, first_seed=1, cfg=2.0, inner=inner, only=(), skipping=False)
    bench = ShapeBench(shape, depth, schedule, settings)
    plans = {"dense": bench.base, "toprovar": setting(bench.base)}
    models, work = {}, {}
    for name, plan in plans.items():
        models[name] = sparvar.compile(bench.copy(), plan, inner=inner)
        bench.generate(models[name], plan)
        work[name] = sum(one.drawn for one in sparvar.explain(models[name]).work)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        for name, model in models.items():
            seconds[name].append(bench.draw(model, plans[name], turn).seconds)
    # Turn by turn, as machines drift.
    ratio = statistics.median(one / other for one, other in zip(seconds["dense"], seconds["toprovar"], strict=True))
    flops = work["dense"] / work["toprovar"]
    result = {
        "benchmark": "pruned-shape",
        "format": 1,
        "machine": machine(),
        "shape": dataclasses.asdict(bench.model.shape),
        "scales": scales,
        "inner": inner,
        "block_flops": work,
        "flops_ratio": flops,
        "seconds": seconds,
        "time_ratio": ratio,
        "time_over_promise": flops / ratio,
    }
    write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({key: result[key] for key in ("flops_ratio", "time_ratio", "time_over_promise")}, indent=1))


if __name__ == "__main__":
    typer.run(main)
