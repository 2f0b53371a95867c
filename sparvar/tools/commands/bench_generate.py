"""`sparvar bench generate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from sparvar.tools.bench.generate import GenerateSettings, run
from sparvar.tools.bench.results import finish, framed
from sparvar.tools.console import handled, show_table
from sparvar.tools.options import BaselineChoice, Cfg, Inner, InnerOption, JsonFile, PlanName, Weights, choose_inner
from sparvar.tools.progress_bar import Lines
from sparvar.tools.reports.text import decibels, mebibytes
from sparvar.tools.result_files import prepare_file


@handled
def generate(
    json: JsonFile = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many images; each takes the next class and seed.")] = 8,
    cfg: Cfg = 2.0,
    plan: PlanName = "auto",
    inner: InnerOption = Inner.auto,
    baseline: Annotated[BaselineChoice, typer.Option(help="Dense variants to compare with.")] = BaselineChoice.both,
    weights: Weights = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, eager dense only, no compiler, memory not measured.")
    ] = False,
) -> None:
    """Time whole generations of the shipped model: eager dense, Inductor dense, sparse.

    The three are generated in turns for every seed, after a first generation that compiles. Memory is measured in a
    process of its own for each.

    [dim]Example[/]

        sparvar bench generate --json benchmarks/results/generate-cpu.json
    """
    prepare_file(json)
    if quick:
        seeds, baseline, inner = 1, BaselineChoice.eager, Inner.eager
    variants = (*baseline.baselines, "sparse")
    settings = GenerateSettings(seeds, cfg, plan, choose_inner(inner), variants, weights, memory=not quick)
    result = framed("generate", quick=quick, **run(settings, Lines()))
    finish(result, _table(result), json)


def _table(result: dict[str, Any]) -> Table:
    """One row per variant."""
    rows = []
    for variant, spread in result["seconds"].items():
        quality = result["quality"].get(variant)
        peak = result.get("peak_memory", {}).get(variant)
        speedup = result["speedup"].get(variant)
        rows.append(
            (
                variant,
                f"{spread['median']:.2f}",
                f"{spread['q25']:.2f} to {spread['q75']:.2f}",
                f"{speedup['median']:.2f}x" if speedup else "",
                decibels(quality["psnr_db_median"]) if isinstance(quality, dict) else "",
                f"{quality['ssim_median']:.3f}" if isinstance(quality, dict) else "",
                mebibytes(peak["bytes"]) if peak else "",
                mebibytes(peak["live_bytes"]) if peak and peak.get("live_bytes") else "",
            )
        )
    titles = "seconds", "quartiles", "sparse is faster by", "PSNR", "SSIM", "resident peak", "tensors"
    share = 100 * result["outside_kernels"]["share"]
    return show_table(
        f"Generation: {result['settings']['seeds']} seeds, plan {result['plan']['name']}",
        ("variant", *(f">{title}" for title in titles)),
        rows,
        f"outside kernels: at most {share:.1f} % of a sparse generation",
    )
