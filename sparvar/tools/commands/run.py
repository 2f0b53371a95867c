"""`sparvar run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparvar.artefact import load
from sparvar.errors import OptionError, message
from sparvar.tools.console import handled, results
from sparvar.tools.options import ArtefactPath, Device, FormatName, Trust
from sparvar.tools.reports.picture import png_of
from sparvar.tools.result_files import prepare_file, write_files


def _numbered(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, count + 1)]


def _tensors(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise OptionError(message("--inputs", "be a readable safetensors file", f"{path}: {error}")) from error


@handled
def run(
    artefact: ArtefactPath,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="With several images: numbered.")],
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="A class, by name or number; repeat it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; image i of several uses seed + i.")] = 0,
    cfg: Annotated[float | None, typer.Option(help="Guidance; the artefact's default if not given.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Safetensors with inputs that are tensors, such as prompts.")
    ] = None,
    format: FormatName = None,
    device: Device = None,
    trust: Trust = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Keep to the memory that the artefact states; 2 to 4 % slower.")
    ] = False,
) -> None:
    """Generate images with an artefact.

    [dim]Examples[/]

        sparvar run landscape --label mountain --seed 7 --out image.png

        sparvar run landscape.sparvar --label sea --label desert --format onnx --out image.png
    """
    if out.suffix.lower() != ".png":
        raise OptionError(message("--out", "end in .png", str(out)))
    prepare_file(out)
    loaded = load(artefact, format=format, device=device, trust=trust, low_memory=low_memory)
    given = _tensors(inputs)
    if cfg is not None:
        given["cfg"] = cfg
    started = time.perf_counter()
    images = loaded.generate(*([label] if label else []), seed=seed, **given)
    seconds = time.perf_counter() - started
    paths = _numbered(out, len(images))
    write_files(out.parent, {path.name: png_of(image) for path, image in zip(paths, images, strict=True)})
    times = f"loaded in {loaded.load_seconds:.2f} s, drawn in {seconds:.2f} s ({loaded.name})"
    results().print(f"{', '.join(map(str, paths))}: {times}", markup=False, soft_wrap=True)
