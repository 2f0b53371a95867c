"""`sparvar bench methods`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from sparvar.errors import OptionError, message
from sparvar.tools.bench.methods import Bench, ImageBench, MethodSettings, run
from sparvar.tools.bench.results import finish, framed
from sparvar.tools.bench.shape import BLOCKS, SEEDS, SIZE, ShapeBench, schedule, sizes
from sparvar.tools.console import handled, show_table
from sparvar.tools.options import Cfg, Inner, InnerOption, JsonFile, Weights, choose_inner
from sparvar.tools.progress_bar import Lines
from sparvar.tools.reports.text import decibels, mebibytes
from sparvar.tools.result_files import prepare_file
from sparvar.zoo import SHAPES

IMAGES = 8
"""Generations of each method on the shipped model where the command does not say."""


@handled
def methods(
    json: JsonFile = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many generations, each of the next seed and class."
            f" [dim]Default: {IMAGES}, with --shape {SEEDS}[/]",
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first generation.")] = 500,
    cfg: Cfg = 2.0,
    inner: InnerOption = Inner.auto,
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
    weights: Weights = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help=f"Random weights of a published shape instead: {', '.join(SHAPES)}."),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"With --shape: how many blocks. [dim]Default: at most {BLOCKS}[/]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=f"With --shape: {', '.join(sizes())}, Infinity's square schedules. [dim]Default: {SIZE}[/]",
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
    prepare_file(json)
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
        seeds = IMAGES if shape is None else SEEDS
    settings = MethodSettings(
        seeds, first_seed, cfg, choose_inner(inner), tuple(only or ()), skipping, refiner, handover
    )
    subject: Bench
    if shape is None:
        subject = ImageBench(settings, plans, weights)
    else:
        subject = ShapeBench(shape, blocks, schedule(size), settings)
    result = framed("methods", **run(settings, subject, Lines()))
    finish(result, _table(result), json)


def _refuse_mixed(shape: str | None, images: dict[str, Any], shapes: dict[str, Any]) -> None:
    """Raises `OptionError` where options of the shipped model meet those of shapes."""
    for name, value in (shapes if shape is None else images).items():
        if value is None or value == []:
            continue
        if shape is None:
            raise OptionError(message(name, "come with --shape", "it alone", "add e.g. --shape infinity-2b"))
        remedy = f"leave out {name}, or --shape"
        raise OptionError(message(name, "be for the shipped model", f"it with --shape {shape}", remedy))


def _table(result: dict[str, Any]) -> Table:
    """One row per method."""
    shape = result["settings"].get("shape")
    against, quality, note = "dense images", ["PSNR", "least", "SSIM"], ""
    if shape is not None:
        against, quality = f"dense outputs, random weights of {shape['name']}'s shape,", ["error"]
        note = "; error: of the last block's output at the last drawn scale, which starts from noise of its own"
    rows = [
        (
            row["method"],
            f"{row['seconds']['median']:.2f}",
            f"{row['speedup']['median']:.2f}x",
            f"{row['promised_speedup']:.2f}x",
            *_quality(row, len(quality)),
            f"{100 * row['block_flops_kept']:.0f} %",
            mebibytes(row["bytes"]),
        )
        for row in result["rows"]
    ]
    titles = "seconds", "faster by", "promised", *quality, "block FLOPs", "memory"
    return show_table(
        f"Methods: {result['settings']['seeds']} generations, medians; against {against} of the same seeds",
        ("method", *(f">{title}" for title in titles)),
        rows,
        f"promised: by FLOPs of the blocks{note}",
    )


def _quality(row: dict[str, Any], columns: int) -> list[str]:
    """What a row says of quality: images, or outputs of random weights."""
    if "relative_error_mean" in row:
        return [f"{row['relative_error_mean']:.2g}"]
    if "ssim_mean" not in row:
        return [""] * columns
    psnr, ssim = row["psnr_db_mean"], f"{row['ssim_mean']:.3f}"
    return ["equal", "", ssim] if psnr is None else [decibels(psnr), decibels(row["psnr_db_least"]), ssim]
