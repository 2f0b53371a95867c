"""`sparvar calibrate`."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sparvar.calibrate import Budget, Calibration, CalibrationOptions, Effort, finish_calibration, start_calibration
from sparvar.errors import SparvarError, message
from sparvar.models.resolve import load_subject
from sparvar.tools.console import as_json, handled, notes, results
from sparvar.tools.options import Checkpoint, Inner, ModelArgument, Prompts, choose_inner
from sparvar.tools.progress_bar import ProgressBar
from sparvar.tools.prompts import read_prompts
from sparvar.tools.reports.calibration_page import page
from sparvar.tools.result_files import prepare_folder, write_files


class Search(str, Enum):
    """Choices of ``--effort``."""

    auto = "auto"
    quick = "quick"
    thorough = "thorough"


EFFORTS = {Search.auto: None, Search.quick: Effort.quick(), Search.thorough: Effort.thorough()}
JSON_NAME, PAGE_NAME = "calibration.json", "calibration.html"


@handled
def calibrate(
    model: ModelArgument,
    prompts: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PLAN", help="The plan; the reports go beside it.")],
    min_psnr: Annotated[float | None, typer.Option(help="Least mean PSNR against dense images, dB.")] = None,
    min_ssim: Annotated[float | None, typer.Option(help="Least mean SSIM against dense images.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Largest relative error of attention's output in any layer; 2 % is 0.02.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Most seconds of one image.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="GPU", help="Predict seconds for this GPU, such as H100, by its roofline.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every image; the same seed and cost table, the same plan.")] = 0,
    inner: Annotated[
        Inner, typer.Option(help="What compiles the graphs that are timed; auto is inductor, but eager on processors.")
    ] = Inner.auto,
    images: Annotated[
        int | None, typer.Option(min=2, help="Images that check a plan, and as many held out: 3 to 8 by the effort.")
    ] = None,
    effort: Annotated[
        Search, typer.Option(help="How fine the search is; auto is as fine as about ten minutes allow.")
    ] = Search.auto,
    checkpoint: Checkpoint = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    reduce: Annotated[
        bool, typer.Option("--reduce/--columns-only", help="Leave out tokens and unconditional rows, too.")
    ] = True,
    skip_scales: Annotated[
        bool, typer.Option("--skip-scales", help="Skip last scales, too: saves most, softens more than PSNR says.")
    ] = False,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="Decide by the image which of the last scales it needs.")
    ] = False,
    max_kv: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Most of the KV cache held between scales, such as 0.125."),
    ] = None,
    max_seconds_total: Annotated[
        float | None, typer.Option(min=1, help="Stop when this time is used up; go on with --resume.")
    ] = None,
) -> None:
    """Find the cheapest plan that meets a budget on this machine, and show that it does.

    Measures what every candidate would lose beside the model's own attention, times the ops, solves for the cheapest
    plan, and runs it on images that calibration has not seen, tightening it until the budget is met. Writes the plan,
    [bold]calibration.json[/] and [bold]calibration.html[/]. By default it is as fine as about ten minutes allow: a
    quick search takes as long as 27 dense images, a thorough one as 76. With fewer images a quick one keeps a wider
    margin above the budget. What was measured stays in the folder PLAN.work: with --resume a run that was stopped, or
    one with another budget, uses it.

    [dim]Examples[/]

        sparvar calibrate zoo:landscape --prompts labels.txt --min-psnr 32 --out plan.json

        sparvar calibrate my.models:build --prompts labels.txt --max-seconds 2 --out fast/plan.json --resume

        sparvar calibrate my.models:build --prompts prompts.txt --min-ssim 0.9 --target H100 --out plan.json
    """
    budget = Budget(min_psnr=min_psnr, min_ssim=min_ssim, max_error=max_error, max_seconds=max_seconds, max_kv=max_kv)
    labels = read_prompts(prompts)
    prepare_folder(out.parent, (out.name, JSON_NAME, PAGE_NAME))
    subject = load_subject(model, checkpoint)
    compiled = choose_inner(inner)
    options = CalibrationOptions(
        seed=seed,
        inner=inner.value if compiled == "inductor" else compiled,
        effort=EFFORTS[effort],
        images=images,
        target=target,
        resume=resume,
        reduce=reduce,
        skip=skip_scales,
        per_image=per_image,
        seconds_in_all=max_seconds_total,
    )
    started = time.monotonic()
    work = out.parent / f"{out.name}.work"
    with ProgressBar(notes()) as bar, start_calibration(subject, labels, budget, work, options, bar) as pipeline:
        bar.expect(STEPS[pipeline.effort.fine])
        found = finish_calibration(pipeline)
    found.report["command_seconds"] = time.monotonic() - started
    write_files(
        out.parent,
        {
            out.name: found.plan.dumps().encode(),
            JSON_NAME: as_json(found.report).encode(),
            PAGE_NAME: page(found.plan, found.report).encode(),
        },
    )
    screen = results()
    screen.print(table(found))
    if found.report["all_dense"]:
        screen.print("No sparse plan met the budget: the plan is all dense.")
        if found.report["nearest"] is not None:
            screen.print(f"Nearest: {found.report['nearest']}.", soft_wrap=True)
    screen.print(f"Plan: {out}; report: {out.parent / PAGE_NAME}", soft_wrap=True)
    missed = missed_budget(found, budget)
    if missed:
        raise SparvarError(missed)


STEPS = {True: 48, False: 19}
"""About how many steps a thorough search announces, and a coarse one; the bar and the time left follow from it."""


def missed_budget(found: Calibration, budget: Budget) -> str:
    """What the held-out images miss, or an empty text."""
    held = found.report["held_out"]
    measured = found.report["target"] is None
    if measured and budget.max_seconds is not None and held["seconds_median"] > budget.max_seconds:
        must = f"take at most {budget.max_seconds:g} s on the held-out images"
        got = f"{held['seconds_median']:.2f} s"
        return message(
            "plan", must, got, "it was written; the machine was slower than when it was checked, or ask less"
        )
    return ""


def table(found: Calibration) -> Table:
    """Predicted and measured, with the plans it is compared with."""
    report = found.report
    target, predicted, held = report["target"], report["predicted"], report["held_out"]
    shown = Table(title=f"plan {found.plan.name}  {found.plan.digest[:19]}")
    for name in ("", "PSNR (dB)", "SSIM", "seconds here" if target else "seconds"):
        shown.add_column(name, justify="right" if name else "left")
    if target is None:
        shown.add_row("predicted", f"{predicted['psnr_db']:.1f}", "-", f"{predicted['seconds']:.2f}")
    else:
        shown.add_row("predicted", f"{predicted['psnr_db']:.1f}", "-", "-")
    rows = {"measured, held out": held}
    rows |= {f"{name} plan, held out": other for name, other in report["others"].items()}
    for name, row in rows.items():
        ssim = row.get("ssim_mean")
        shown.add_row(
            name, f"{row['psnr_db_mean']:.1f}", "-" if ssim is None else f"{ssim:.3f}", f"{row['seconds_median']:.2f}"
        )
    dense = report["costs"]["dense_seconds"]
    if target is None:
        shown.add_row("dense", "-", "-", f"{dense:.2f}")
    else:
        times = f"{1000 * predicted['seconds']:.1f} ms, dense {1000 * dense:.1f} ms"
        shown.caption = f"Roofline of {target}: {times}; a prediction, nothing was run there."
    if held["max_error"] is not None:
        shown.caption = f"Largest relative error of attention's output, held out: {100 * held['max_error']:.2f} %"
    return shown
