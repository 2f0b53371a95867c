"""`sparvar bench ops`, `sparvar bench generate` and `sparvar bench methods`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from sparvar import kernels
from sparvar.errors import OptionError, message
from sparvar.evaluate.machine import machine
from sparvar.tools import output as files
from sparvar.tools.bench import generate as bench_generate
from sparvar.tools.bench import methods as bench_methods
from sparvar.tools.bench import ops as bench_ops
from sparvar.tools.bench import shape as bench_shape
from sparvar.tools.bench import static as bench_static
from sparvar.tools.commands.demo import BASELINES, BaselineChoice, Inner, choose_inner
from sparvar.tools.console import EXIT_CODES, as_json, handled, notes, output
from sparvar.tools.reports.text import decibels, mebibytes
from sparvar.zoo import SHAPES

bench = typer.Typer(invoke_without_command=True, no_args_is_help=False)

ROUNDS, QUICK_ROUNDS = 9, 3
HEADS, QUICK_HEADS = 8, 1
IMAGES = 8


def _say(text: str) -> None:
    notes().print(text, markup=False)


def _framed(what: str, **content: Any) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"benchmark": what, "format": 1, "device": device, "machine": machine(), **content}


def run_ops(quick: bool) -> dict[str, Any]:
    """The content of an ops result file."""
    rounds, heads = (QUICK_ROUNDS, QUICK_HEADS) if quick else (ROUNDS, HEADS)
    done = []
    for case in bench_ops.cases(heads, flex=not quick):
        _say(case.what)
        done.append(bench_ops.run_case(case, rounds))
    return _framed(
        "ops", quick=quick, rounds=rounds, warmup=1, implementation=kernels.implementation("cpu"), cases=done
    )


def ops_table(result: dict[str, Any]) -> Table:
    """One row per comparison."""
    table = Table(title="Ops: medians, ratios taken round by round", title_justify="left")
    for name in ("case", "ours", "against", "its time", "ratio", "quartiles", "reach", "ideal"):
        table.add_column(name, justify="left" if name in ("case", "against") else "right")
    for case in result["cases"]:
        ours = f"{1e3 * case['seconds']['ours']['median']:.1f} ms"
        if not case["ratios"]:
            table.add_row(case["name"], ours, *[""] * 6)
        sign = "at most" if "cost" in case["ratio"] else "at least"
        for other, found in case["ratios"].items():
            reach = f"{sign} {case['reach'][other]:g}" if other in case["reach"] else ""
            table.add_row(
                case["name"],
                ours,
                other,
                f"{1e3 * case['seconds'][other]['median']:.1f} ms",
                f"{found['median']:.2f}",
                f"{found['q25']:.2f} to {found['q75']:.2f}",
                reach,
                f"{case['ideal']:.1f}" if case["ideal"] and other == "sdpa" else "",
            )
        for other, reason in case["skipped"].items():
            table.add_row(case["name"], ours, other, "did not run", reason, "", "", "")
    return table


def generate_table(result: dict[str, Any]) -> Table:
    """One row per variant."""
    table = Table(
        title=f"Generation: {result['settings']['seeds']} seeds, plan {result['plan']['name']}", title_justify="left"
    )
    for name in ("variant", "seconds", "quartiles", "sparse is faster by", "PSNR", "SSIM", "resident peak", "tensors"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant, spread in result["seconds"].items():
        quality = result["quality"].get(variant)
        peak = result.get("peak_memory", {}).get(variant)
        speedup = result["speedup"].get(variant)
        table.add_row(
            variant,
            f"{spread['median']:.2f}",
            f"{spread['q25']:.2f} to {spread['q75']:.2f}",
            f"{speedup['median']:.2f}x" if speedup else "",
            decibels(quality["psnr_db_median"]) if isinstance(quality, dict) else "",
            f"{quality['ssim_median']:.3f}" if isinstance(quality, dict) else "",
            mebibytes(peak["bytes"]) if peak else "",
            mebibytes(peak["live_bytes"]) if peak and peak.get("live_bytes") else "",
        )
    share = result["outside_kernels"]["share"]
    table.caption = f"outside kernels: at most {100 * share:.1f} % of a sparse generation"
    table.caption_justify = "left"
    return table


def _finish(result: dict[str, Any], table: Table, file: Path | None) -> None:
    if file is not None:
        files.write_all(file.parent, {file.name: as_json(result).encode()})
    screen = output()
    screen.print(table)
    if file is not None:
        screen.print(f"Results: {file}", soft_wrap=True)


@bench.callback()
@handled
def both(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run both benchmarks and write their results to this folder.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="With --out: small, only to see that it runs.")] = False,
) -> None:
    """Measure ops and whole generations, in ratios taken within one run.

    [dim]Examples[/]

        sparvar bench --out bench-output

        sparvar bench ops --json ops-cpu.json
    """
    if context.invoked_subcommand is not None:
        if out is not None or quick:
            raise typer.BadParameter("give options after the name of the benchmark, e.g. bench ops --quick")
        return
    if out is None:
        raise typer.BadParameter("name a benchmark (ops or generate), or a folder with --out to run both")
    files.prepare(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = run_ops(quick)
    _finish(result, ops_table(result), out / f"ops-{device}.json")
    generate(json=out / f"generate-{device}.json", quick=quick)


@bench.command(epilog=EXIT_CODES)
@handled
def ops(
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One head, three rounds, no FlexAttention; with --static, 12 compilations.")
    ] = False,
    static: Annotated[
        bool,
        typer.Option("--static", help="Compile the Triton kernels for GPUs that need not be here, and read the code."),
    ] = False,
) -> None:
    """Time every op on the shapes of a one-megapixel model, against SDPA and FlexAttention with the same mask.

    Every variant of a case runs once per round, in turns; ratios are taken within a round, and their median and
    quartiles are shown. A variant that disagrees with SDPA is an error, not a time.

    With [cyan]--static[/] nothing is timed: the table shows registers, spills and memory of every compiled kernel,
    and the exit code is 1 if one of them spills, does not fit or misses the tensor cores.

    [dim]Examples[/]

        sparvar bench ops --json benchmarks/results/ops-cpu.json

        sparvar bench ops --static --json benchmarks/results/static-kernels.json
    """
    if json is not None:
        files.prepare_file(json)
    if static:
        found = bench_static.run(quick)
        _finish(found, bench_static.table(found), json)
        bench_static.refuse_problems(found)
        return
    result = run_ops(quick)
    _finish(result, ops_table(result), json)


@bench.command(epilog=EXIT_CODES)
@handled
def generate(
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many images; each takes the next class and seed.")] = 8,
    cfg: Annotated[float, typer.Option(min=0.0, help="Guidance strength; 1 turns guidance off.")] = 2.0,
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="auto, a plan file, or the name of a shipped plan.")
    ] = "auto",
    inner: Annotated[Inner, typer.Option(help="What compiles the rewritten graphs.")] = Inner.auto,
    baseline: Annotated[BaselineChoice, typer.Option(help="Dense variants to compare with.")] = BaselineChoice.both,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with other weights of the landscape model.")
    ] = None,
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
    if json is not None:
        files.prepare_file(json)
    if quick:
        seeds, baseline, inner = 1, BaselineChoice.eager, Inner.eager
    settings = bench_generate.GenerateSettings(
        seeds, cfg, plan, choose_inner(inner), (*BASELINES[baseline.value], "sparse"), weights, memory=not quick
    )
    result = _framed("generate", quick=quick, **bench_generate.run(settings, _say))
    _finish(result, generate_table(result), json)


def methods_table(result: dict[str, Any]) -> Table:
    """One row per method."""
    shape = result["settings"].get("shape")
    against = "dense images" if shape is None else f"dense outputs, random weights of {shape['name']}'s shape,"
    table = Table(
        title=f"Methods: {result['settings']['seeds']} generations, medians; against {against} of the same seeds",
        title_justify="left",
    )
    quality = ("PSNR", "least", "SSIM") if shape is None else ("error",)
    for name in ("method", "seconds", "faster by", "promised", *quality, "block FLOPs", "memory"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in result["rows"]:
        table.add_row(
            row["method"],
            f"{row['seconds']['median']:.2f}",
            f"{row['speedup']['median']:.2f}x",
            f"{row['promised_speedup']:.2f}x",
            *_quality(row, len(quality)),
            f"{100 * row['block_flops_kept']:.0f} %",
            mebibytes(row["bytes"]),
        )
    table.caption = "promised: by FLOPs of the blocks"
    if shape is not None:
        table.caption += (
            "; error: of the last block's output at the last drawn scale, which starts from noise of its own"
        )
    table.caption_justify = "left"
    return table


def _quality(row: dict[str, Any], columns: int) -> list[str]:
    """What a row says of quality: images, or outputs of random weights."""
    if "relative_error_mean" in row:
        return [f"{row['relative_error_mean']:.2g}"]
    if "ssim_mean" not in row:
        return [""] * columns
    psnr, ssim = row["psnr_db_mean"], f"{row['ssim_mean']:.3f}"
    return ["equal", "", ssim] if psnr is None else [decibels(psnr), decibels(row["psnr_db_least"]), ssim]


@bench.command(epilog=EXIT_CODES)
@handled
def methods(
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many generations, each of the next seed and class."
            f" [dim]Default: {IMAGES}, with --shape {bench_shape.SEEDS}[/]",
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first generation.")] = 500,
    cfg: Annotated[float, typer.Option(min=0.0, help="Guidance strength; 1 turns guidance off.")] = 2.0,
    inner: Annotated[Inner, typer.Option(help="What compiles the rewritten graphs.")] = Inner.auto,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            "--plan", metavar="NAME=PLAN", help="One more plan to compare, a file or a shipped one; repeatable."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="METHOD", help="Repeatable.")] = None,
    skipping: Annotated[
        bool, typer.Option("--skipping/--no-skipping", help="Every method also with the last two scales skipped.")
    ] = True,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with other weights of the landscape model.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help=f"Random weights of a published shape instead: {', '.join(SHAPES)}."),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"With --shape: how many blocks. [dim]Default: at most {bench_shape.BLOCKS}[/]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=f"With --shape: {', '.join(bench_shape.sizes())}, Infinity's square schedules."
            f" [dim]Default: {bench_shape.SIZE}[/]",
        ),
    ] = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|SHAPE",
            help="Also CoDe: the rest is drawn with the weights in DIR, with --shape by a smaller SHAPE.",
        ),
    ] = None,
    handover: Annotated[
        int | None,
        typer.Option(
            metavar="SCALE",
            help="With --refiner: the last scale of the large model. [dim]Default: four fifths of the scales[/]",
        ),
    ] = None,
) -> None:
    """Compare the published methods, each alone, with calibrated mixtures, on the shipped model.

    Every method is a plan; all draw the same images in turns, after a first generation that compiles. FLOPs are those
    of the blocks, counted; memory is the most that tensors of a generation of its own held at once, weights apart.

    With [cyan]--shape[/] a few blocks of a large model's width run in place of the shipped model, with guidance and
    cross-attention, to see whether FLOPs become time where size is real. Random weights draw no image: in place of
    PSNR stands the relative error of the last block's output, which says nothing about images. On two cores the default
    size and blocks of Infinity-2B take about three quarters of an hour, [cyan]--blocks 1[/] a quarter of that.

    [dim]Examples[/]

        sparvar bench methods --plan mixture=plan.json --json benchmarks/results/methods-cpu.json

        sparvar bench methods --shape infinity-2b --json benchmarks/results/methods-infinity-2b-cpu.json
    """
    if json is not None:
        files.prepare_file(json)
    plans = {}
    for text in plan or ():
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise typer.BadParameter(f"--plan must be NAME=PLAN, got {text!r}")
        plans[name] = file
    _refuse_mixed(shape, {"--plan": plan, "--weights": weights}, {"--blocks": blocks, "--size": size})
    if handover is not None and refiner is None:
        raise OptionError(message("--handover", "come with --refiner", "it alone", "name the smaller model, too"))
    if seeds is None:
        seeds = IMAGES if shape is None else bench_shape.SEEDS
    settings = bench_methods.MethodSettings(
        seeds, first_seed, cfg, choose_inner(inner), tuple(only or ()), skipping, refiner, handover
    )
    subject: bench_methods.Bench
    if shape is None:
        subject = bench_methods.ImageBench(settings, plans, weights)
    else:
        subject = bench_shape.ShapeBench(shape, blocks, bench_shape.schedule(size), settings)
    result = _framed("methods", **bench_methods.run(settings, subject, _say))
    _finish(result, methods_table(result), json)


def _refuse_mixed(shape: str | None, images: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Raises `OptionError` where options of the shipped model meet those of shapes."""
    for name, value in (shapes if shape is None else images).items():
        if value is None or value == []:
            continue
        if shape is None:
            raise OptionError(message(name, "come with --shape", "it alone", "add e.g. --shape infinity-2b"))
        remedy = f"leave out {name}, or --shape"
        raise OptionError(message(name, "be for the shipped model", f"it with --shape {shape}", remedy))
