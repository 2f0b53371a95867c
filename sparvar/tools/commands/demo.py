"""`sparvar demo`."""

from __future__ import annotations

import math
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from sparvar.evaluate.machine import compiler
from sparvar.tools import output
from sparvar.tools.bench.demo import Baseline, Demo, DemoSettings, Progress, generations
from sparvar.tools.console import as_json, handled, load_landscape, notes, print_json
from sparvar.tools.console import output as results
from sparvar.tools.reports.demo_page import page
from sparvar.tools.reports.demo_table import closing_table, report
from sparvar.tools.reports.picture import comparison, png
from sparvar.zoo import CLASSES

FILES = ("plan.json", "comparison.png", "report.html", "report.json")


class Inner(str, Enum):
    """Choices of ``--inner``."""

    auto = "auto"
    inductor = "inductor"
    eager = "eager"


class BaselineChoice(str, Enum):
    """Choices of ``--baseline``."""

    eager = "eager"
    inductor = "inductor"
    both = "both"


BASELINES: dict[str, tuple[Baseline, ...]] = {
    "eager": ("eager",),
    "inductor": ("inductor",),
    "both": ("eager", "inductor"),
}


def _runs(images: int) -> int:
    """Timed generations of each image: about six pairs in all, so that medians mean something."""
    return max(1, math.ceil(6 / images))


def choose_inner(inner: Inner) -> str:
    """What ``auto`` stands for here, said aloud."""
    if inner is not Inner.auto:
        return inner.value
    if compiler() is not None:
        return "inductor"
    notes().print("No C++ compiler was found, so the graphs run without Inductor (--inner eager).")
    return "eager"


def choose_classes(text: str, images: int) -> tuple[str, ...]:
    """Classes of the images, repeated as often as needed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CLASSES:
            raise typer.BadParameter(
                f"{name!r} is not a class; the classes are {', '.join(CLASSES)}", param_hint="--classes"
            )
    if not names:
        raise typer.BadParameter(f"name at least one of {', '.join(CLASSES)}", param_hint="--classes")
    return tuple(names[number % len(names)] for number in range(images))


class _Drawn(Progress):
    """Progress on a rich bar: one unit per token of every scale, so that it moves evenly."""

    def __init__(self, bar: Bar, total: int, tokens: list[int]) -> None:
        self.bar, self.tokens = bar, tokens
        self.task = bar.add_task("starting", total=total * sum(tokens))
        self.plain = not bar.console.is_terminal

    def begin(self, text: str) -> None:
        self.bar.update(self.task, description=text)
        if self.plain:
            self.bar.console.print(text, markup=False)

    def scale(self, scale: int) -> None:
        self.bar.advance(self.task, self.tokens[scale])


@handled
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is not there.")],
    images: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the next one takes the next number.")] = 0,
    classes: Annotated[
        str, typer.Option(metavar="NAMES", help="Comma-separated classes, taken in turn: " + ", ".join(CLASSES) + ".")
    ] = "mountain,sea",
    cfg: Annotated[float, typer.Option(min=0.0, help="Guidance strength; 1 turns guidance off.")] = 2.0,
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="auto (the shipped plan of the model), a plan file, or a shipped name.")
    ] = "auto",
    inner: Annotated[
        Inner, typer.Option(help="What compiles the rewritten graphs; auto is inductor where a C++ compiler is.")
    ] = Inner.auto,
    baseline: Annotated[
        BaselineChoice, typer.Option(help="What sparse is compared with; Inductor takes minutes to compile.")
    ] = BaselineChoice.eager,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Timed runs of each image; about six in all by default.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with weights from `python -m sparvar.zoo.training`.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Generate the same landscapes dense and sparse, and measure what changed.

    Takes a few minutes the first time, most of them compiling. Dense and sparse runs alternate, so that both meet the
    same machine; times are medians. The folder gets [bold]report.html[/] (open it in a browser),
    [bold]comparison.png[/], [bold]report.json[/] and [bold]plan.json[/].

    [dim]Examples[/]

        sparvar demo --out demo-output

        sparvar demo --out dusk --images 4 --classes sea,sky_fog --seed 7
    """
    chosen = choose_classes(classes, images)
    output.prepare(out, FILES)
    settings = DemoSettings(chosen, seed, cfg, choose_inner(inner), BASELINES[baseline.value], runs or _runs(images))
    model = load_landscape(weights)
    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(*columns, console=console, refresh_per_second=4, transient=True))
        tokens = [side * side for side in model.sides]
        measured = Demo(model, plan, settings, _Drawn(bar, generations(settings), tokens))
        result = measured.run()
    facts = report(result)
    output.write_all(
        out,
        {
            "plan.json": result.plan.dumps().encode(),
            "comparison.png": png(comparison(result.images)),
            "report.html": page(result).encode(),
            "report.json": as_json(facts).encode(),
        },
    )
    if json:
        print_json(facts)
        return
    screen = results()
    screen.print(closing_table(result))
    screen.print(f"Pictures and figures: {out / 'report.html'}", soft_wrap=True)
