"""Export, verification and speed of an artefact on a machine with an NVIDIA GPU.

``python benchmarks/export_gpu.py`` exports the shipped model for CUDA (AOTInductor, Triton kernels inside), verifies
the artefact, and draws images in turns with it, with and without CUDA graphs, and in process: eager dense, and by way
of `sparvar.compile`. Graphs are checked against the programs called one by one, over seeds and from two threads. It
writes ``benchmarks/results/export-gpu-<device>.json``. ``--dry-run`` runs all of it at a small size on whatever device
there is, without the graphs where that is a CPU, and writes nothing.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sparvar
from sparvar.artefact import load, verify
from sparvar.evaluate.machine import machine
from sparvar.evaluate.metrics import psnr
from sparvar.export import export_artefact
from sparvar.scale_plans import ModelInfo, default_plan
from sparvar.zoo import landscape
from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer

RESULTS = Path(__file__).parent / "results"
SIDES = (1, 3, 6)
LABELS = ("mountain", "sea", "desert", "city")


class Printed:
    """Steps of the export on standard output."""

    def step(self, text: str, share: float = 0.0) -> None:
        print(f"{share:4.0%} {text}")


def small() -> LandscapeVAR:
    """A model of the shipped architecture with random weights, three scales."""
    torch.manual_seed(0)
    tokenizer = BitTokenizer(dim=8, patch=4, sides=SIDES, width=8, depth=1)
    tokenizer.basis.copy_(torch.linalg.qr(torch.randn(48, 8))[0].T)
    return LandscapeVAR(tokenizer, width=128, depth=4, heads=2).eval().requires_grad_(False)


def small_plan() -> Any:
    """A plan with every kind of block for `small`."""
    sites = [f"blocks.{layer}.attn" for layer in range(4)]
    grids = [(side, side) for side in SIDES]
    return default_plan(grids, ModelInfo(sites=sites, heads=2, head_dim=64), tile=(2, 3), name="small")


def least(values: list[float]) -> float | str:
    """The least PSNR, as JSON can hold it."""
    return "equal" if min(values) == float("inf") else min(values)


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    paths: dict[str, Callable[[str, int], torch.Tensor]], images: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, list[torch.Tensor]]]:
    """Seconds and images of every path; two unmeasured rounds come first."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    drawn: dict[str, list[torch.Tensor]] = {name: [] for name in paths}
    for number in range(-2, images):
        for name in list(paths) if number % 2 else list(paths)[::-1]:
            finish(device)
            started = time.perf_counter()
            image = paths[name](LABELS[number % len(LABELS)], 700 + number)
            finish(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
                drawn[name].append(image.cpu())
    return seconds, drawn


def threads_agree(folder: Path, sequential: list[torch.Tensor]) -> bool:
    """Whether two sessions in two threads draw what one drew."""
    artefact = load(folder, sessions=2)
    found: dict[int, torch.Tensor] = {}

    def draw(numbers: range) -> None:
        for number in numbers:
            found[number] = artefact.generate([LABELS[number % len(LABELS)]], seed=700 + number).cpu()

    workers = [threading.Thread(target=draw, args=(range(part, len(sequential), 2),)) for part in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(found) == len(sequential) and all(torch.equal(found[i], each) for i, each in enumerate(sequential))


def main(
    images: Annotated[int, typer.Option(help="Measured images per path.")] = 12,
    folder: Annotated[Path | None, typer.Option(help="Where to export to; a temporary folder if not given.")] = None,
    jobs: Annotated[int, typer.Option(help="Compiling processes; 0: what the machine has room for.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="A small model on any device; writes nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file instead of the one named after the device.")] = None,
) -> None:
    """Run everything, print and write JSON."""
    if not torch.cuda.is_available() and not dry_run:
        raise typer.BadParameter("this machine has no CUDA device; --dry-run shows that the script works")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    build, plan = (small, small_plan()) if dry_run else (landscape, "auto")
    images = 2 if dry_run else images
    with tempfile.TemporaryDirectory() as temporary:
        target = (folder or Path(temporary)) / "artefact"
        target.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        export_artefact(build().to(device), plan, target, jobs=jobs, progress=Printed())
        result: dict[str, Any] = {"export_seconds": time.perf_counter() - started}
        report = verify(target)
        result["verify"] = {
            "ok": report.ok,
            "problems": report.problems,
            "psnr_db": least([report.psnr_db]),
            "load_seconds": report.load_seconds,
            "bytes": report.bytes,
            "workspace": report.workspace,
            "program_ms": {name: 1e3 * each.seconds for name, each in report.programs.items()},
        }
        model, compiled = build().to(device), sparvar.compile(build().to(device), plan=plan)
        plain = load(target, graphs=False)
        paths: dict[str, Callable[[str, int], torch.Tensor]] = {
            "eager_dense": lambda label, seed: model.generate([label], seed=seed),
            "in_process": lambda label, seed: compiled.generate([label], seed=seed),
            "aoti": lambda label, seed: plain.generate([label], seed=seed),
        }
        if device.type == "cuda":
            graphs = load(target)
            paths["aoti_graphs"] = lambda label, seed: graphs.generate([label], seed=seed)
        seconds, drawn = in_turns(paths, images, device)
        result["seconds"] = {
            name: {"median": statistics.median(each), "least": min(each), "most": max(each)}
            for name, each in seconds.items()
        }
        wanted = result["seconds"]["in_process"]["median"]
        result["over_in_process"] = {name: each["median"] / wanted for name, each in result["seconds"].items()}
        result["psnr_to_in_process"] = {
            name: least([psnr(image, other) for image, other in zip(drawn[name], drawn["in_process"], strict=True)])
            for name in paths
            if name != "in_process"
        }
        if device.type == "cuda":
            pairs = zip(drawn["aoti_graphs"], drawn["aoti"], strict=True)
            result["graphs_against_programs"] = least([psnr(image, other) for image, other in pairs])
        last = drawn["aoti_graphs" if device.type == "cuda" else "aoti"]
        result["two_threads_draw_the_same"] = threads_agree(target, last)
    print(json.dumps(result, indent=1))
    if not report.ok or not result["two_threads_draw_the_same"]:
        raise typer.Exit(1)
    if dry_run:
        return
    name = torch.cuda.get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = out or RESULTS / f"export-gpu-{slug}.json"
    head = {"benchmark": "export-gpu", "format": 1, "device": name, "machine": machine()}
    path.write_text(json.dumps({**head, **result}, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
