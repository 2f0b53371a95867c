"""`sparvar export`."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sparvar.export import export_artefact, load_exportable
from sparvar.tools.console import handled, notes, results
from sparvar.tools.options import Checkpoint, ModelArgument
from sparvar.tools.progress_bar import ShareBar


class Format(str, Enum):
    """Formats of programs."""

    aoti = "aoti"
    onnx = "onnx"
    tensorrt = "tensorrt"


LICENCES = {"zoo:landscape": "Apache-2.0 (trained on public-domain photographs)"}


@handled
def export(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="ARTEFACT", help="A folder, or one file that ends in .sparvar.")
    ],
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="A plan file or the name of a plan; auto finds the model's.")
    ] = "auto",
    format: Annotated[
        list[Format] | None, typer.Option("--format", "-f", help="Give it again for more than one; aoti if none.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that one run of the programs makes.")] = 1,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for whoever receives the artefact.")] = None,
    checkpoint: Checkpoint = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: programs for this machine's GPU.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="Compiling processes; 0: what cores and memory allow.")] = 0,
) -> None:
    """Turn a model and a plan into an artefact that runs without the model's source and compiles nothing.

    The artefact holds one program per scale and kind of block, the weights once, a golden image, and a manifest with
    the checksum of every file. [cyan]sparvar run[/] generates with it, [cyan]sparvar verify[/] checks it. It is built
    aside and moved into place when it is whole; after a stop the same command goes on with what was compiled.
    A factory returns the model, or a family of [bold]sparvar.models[/] that was made with its settings.

    [dim]Examples[/]

        sparvar export zoo:landscape --out landscape

        sparvar export zoo:landscape --out landscape.sparvar --format aoti --format onnx

        sparvar export my.models:build --plan plan.json --out model --licence MIT
    """
    started = time.monotonic()
    subject = load_exportable(model, checkpoint, batch, device)
    with ShareBar(notes()) as bar:
        place = export_artefact(
            subject,
            plan,
            out,
            name=model,
            formats=[each.value for each in format or [Format.aoti]],
            licence=licence or LICENCES.get(model, "not stated"),
            jobs=jobs,
            progress=bar,
        )
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    seconds = time.monotonic() - started
    results().print(f"{place}: {size / 2**20:.1f} MiB in {seconds:.0f} s", markup=False, soft_wrap=True)
