"""What pruning saves on blocks of a published width: FLOPs promised, time found.

``python benchmarks/pruned_shape.py`` runs a few random-weight blocks of Infinity-2B's width over the one-megapixel
schedule, dense and at ToProVAR's setting, in turns on this machine. Whole models are too large for CPUs; every block of
a model does the same work, so that ratios carry over.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

import sparvar
from sparvar.scale_plans import Plan, Thresholds, dense_plan, toprovar, write_whole
from sparvar.tools.machine import machine
from sparvar.zoo import SHAPES, ShapedVAR

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
    sizes = dataclasses.replace(SHAPES[shape], depth=depth)
    sides = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)[:scales]
    schedule = tuple((side, side) for side in sides)
    names = [f"blocks.{number}.sa" for number in range(depth)]
    dense = dense_plan(schedule, names, heads=sizes.heads, head_dim=sizes.head_dim)
    models, work = {}, {}
    torch.manual_seed(0)
    for name, plan in {"dense": dense, "toprovar": setting(dense)}.items():
        models[name] = sparvar.compile(ShapedVAR(sizes, schedule).eval(), plan, inner=inner)
        models[name].generate(seed=0)
        found = sparvar.explain(models[name]).work
        work[name] = sum(one.drawn for one in found)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        for name, model in models.items():
            started = time.perf_counter()
            model.generate(seed=turn + 1)
            seconds[name].append(time.perf_counter() - started)
    # Turn by turn, as machines drift.
    ratio = statistics.median(one / other for one, other in zip(seconds["dense"], seconds["toprovar"], strict=True))
    flops = work["dense"] / work["toprovar"]
    result = {
        "benchmark": "pruned-shape",
        "format": 1,
        "machine": machine(),
        "shape": dataclasses.asdict(sizes),
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
