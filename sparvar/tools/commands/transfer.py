"""`sparvar transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from sparvar import scale_plans
from sparvar.calibrate import Subject, compare_plans
from sparvar.errors import OptionError, PlanError, message
from sparvar.models.resolve import load_subject
from sparvar.scale_plans import Plan, Schedule, load_plan, parse_schedule, schedule_text
from sparvar.tools.console import handled, notes, results
from sparvar.tools.options import MODEL_HELP, Checkpoint, Inner, InnerOption, Prompts, choose_inner
from sparvar.tools.progress_bar import ProgressBar
from sparvar.tools.prompts import read_prompts
from sparvar.tools.result_files import prepare_file, write_files
from sparvar.version import __version__


@handled
def transfer(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file, or the name of a shipped plan.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)],
    prompts: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PLAN", help="The carried plan.")],
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Image size in pixels, height first; the model's own if absent.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="GRIDS", help='Grid of every scale, like "1x1 2x2 3x5", instead of the rule.')
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images that measure the loss, dense and with the plan.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the next one takes the next number.")] = 0,
    inner: InnerOption = Inner.auto,
    checkpoint: Checkpoint = None,
) -> None:
    """Carry a plan to another image size or ratio by rule, and measure what it loses there.

    Scales correspond by their size relative to the last one. Draws the same images with the model's own code and with
    the carried plan, in turns, and writes the plan with their PSNR and seconds. It is not calibrated: where it loses
    too much, run [bold]sparvar calibrate[/] at that size. A model of your own says how it draws other sizes in its
    Subject; without --size and --schedule the plan is carried to the schedule that the model has.

    [dim]Examples[/]

        sparvar transfer landscape --model zoo:landscape --size 384x640 --prompts labels.txt --out plan-384x640.json

        sparvar transfer plan.json --model my.models:small --prompts labels.txt --images 8 --out small.json
    """
    source = load_plan(plan)
    labels = read_prompts(prompts)
    prepare_file(out)
    subject = choose_schedule(load_subject(model, checkpoint), size, schedule)
    target = scale_plans.transfer(source, subject.schedule, prefix=subject.prefix)
    with ProgressBar(notes(), 2 * images + 1) as bar:
        found = compare_plans(subject, target, labels, images, seed, choose_inner(inner), bar)
    finished = with_loss(target, found, str(next(subject.model.parameters()).device))
    write_files(out.parent, {out.name: finished.dumps().encode()})
    screen = results()
    screen.print(table(source, finished, found))
    if finished.all_dense:
        screen.print("No scale of this schedule stands for a sparse one: the carried plan is all dense.")
    screen.print(f"Plan: {out}", soft_wrap=True)


def choose_schedule(subject: Subject, size: str | None, schedule: str | None) -> Subject:
    """The subject at the size and schedule that were asked for; itself where neither was.

    Raises:
        OptionError: the text is no size or schedule, the two disagree, or the model cannot draw it.
    """
    sized = subject
    if size is not None:
        height, width = parse_size(size)
        if subject.resize is None:
            remedy = "give its Subject a resize, or leave --size out"
            raise OptionError(message("--size", f"be left out: model {subject.name} draws one size", size, remedy))
        sized = subject.resize(height, width)
    if schedule is None:
        return sized
    grids = parse_grids(schedule)
    if subject.reschedule is None:
        remedy = "give its Subject a reschedule, or leave --schedule out"
        raise OptionError(message("--schedule", f"be left out: model {subject.name} has one", schedule, remedy))
    if size is not None and grids[-1] != sized.schedule[-1]:
        (height, width), (h, w) = sized.schedule[-1], grids[-1]
        raise OptionError(
            message("--schedule", f"end with {height}x{width}, the last grid of --size {size}", f"{h}x{w}")
        )
    return subject.reschedule(grids)


def parse_size(text: str) -> tuple[int, int]:
    """``384x640`` as (height, width). Raises `OptionError`."""
    height, times, width = text.partition("x")
    if not (times and height.isascii() and width.isascii() and height.isdigit() and width.isdigit()):
        raise OptionError(message("--size", "be height and width in pixels, like 384x640", repr(text)))
    return int(height), int(width)


def parse_grids(text: str) -> Schedule:
    """``1x1 2x3`` as grids. Raises `OptionError`."""
    try:
        grids = parse_schedule(text)
    except PlanError as error:
        raise OptionError(f"--{error}") from error
    if not grids:
        raise OptionError(message("--schedule", 'be grids, like "1x1 2x2 3x5"', repr(text)))
    return grids


def with_loss(plan: Plan, found: dict[str, Any], device: str) -> Plan:
    """The plan with what `compare_plans` found."""
    figures = {
        "psnr_db": round(found["psnr_db_mean"], 3),
        "psnr_db_least": round(found["psnr_db_least"], 3),
        "seconds": round(found["seconds_median"], 4),
        "dense_seconds": round(found["dense_seconds_median"], 4),
    }
    note = f"{plan.provenance.note}; measured on {found['images']} images"
    changes = {"tool": f"sparvar {__version__} transfer", "torch": torch.__version__, "device": device, "note": note}
    return plan.replace(measured=figures, provenance=plan.provenance.model_copy(update=changes))


def table(source: Plan, plan: Plan, found: dict[str, Any]) -> Table:
    """Dense and carried: PSNR and seconds."""
    shown = Table(
        title=f"plan {plan.name}  {plan.digest[:19]}",
        caption=f"{source.name} ({schedule_text(source.schedule)}) carried to {schedule_text(plan.schedule)}",
    )
    for name in ("", "PSNR (dB)", "least", "seconds", "of dense"):
        shown.add_column(name, justify="right" if name else "left")
    seconds, dense = found["seconds_median"], found["dense_seconds_median"]
    psnr, least = found["psnr_db_mean"], found["psnr_db_least"]
    shown.add_row("dense", "-", "-", f"{dense:.2f}", "100 %")
    shown.add_row("transferable", f"{psnr:.1f}", f"{least:.1f}", f"{seconds:.2f}", f"{100 * found['ratio']:.0f} %")
    return shown
