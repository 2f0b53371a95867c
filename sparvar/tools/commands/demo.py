"""`sparvar demo`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparvar.tools.bench.demo import Demo, DemoSettings, generations
from sparvar.tools.console import as_json, handled, notes, print_json, results
from sparvar.tools.options import BaselineChoice, Cfg, Inner, InnerOption, PlanName, Weights, choose_inner
from sparvar.tools.progress_bar import ProgressBar
from sparvar.tools.reports.demo_page import page
from sparvar.tools.reports.demo_table import closing_table, report
from sparvar.tools.reports.picture import comparison, png
from sparvar.tools.result_files import prepare_folder, write_files
from sparvar.zoo import CLASSES, landscape

FILES = ("plan.json", "comparison.png", "report.html", "report.json")


def _runs(images: int) -> int:
    """Timed generations of each image: about six pairs in all, so that medians mean something."""
    return max(1, math.ceil(6 / images))


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


class _TokenBar(ProgressBar):
    """One unit per token of every scale, so that the bar moves evenly."""

    def __init__(self, generations: int, sides: Sequence[int]) -> None:
        self.tokens = [side * side for side in sides]
        super().__init__(notes(), generations * sum(self.tokens))

    def step(self, text: str, advance: float = 0.0) -> None:
        super().step(text, advance)

    def scale(self, scale: int) -> None:
        """The 0-based scale of the generation under way is done."""
        self.move(self.tokens[scale])


@handled
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if it is not there.")],
    images: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the next one takes the next number.")] = 0,
    classes: Annotated[
        str, typer.Option(metavar="NAMES", help="Comma-separated classes, taken in turn: " + ", ".join(CLASSES) + ".")
    ] = "mountain,sea",
    cfg: Cfg = 2.0,
    plan: PlanName = "auto",
    inner: InnerOption = Inner.auto,
    baseline: Annotated[
        BaselineChoice, typer.Option(help="What sparse is compared with; Inductor takes minutes to compile.")
    ] = BaselineChoice.eager,
    runs: Annotated[
        int | None, typer.Option(min=1, help="Timed runs of each image; about six in all by default.")
    ] = None,
    weights: Weights = None,
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
    prepare_folder(out, FILES)
    settings = DemoSettings(chosen, seed, cfg, choose_inner(inner), baseline.baselines, runs or _runs(images))
    model = landscape(weights)
    with _TokenBar(generations(settings), model.sides) as bar:
        result = Demo(model, plan, settings, bar).run()
    facts = report(result)
    write_files(
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
