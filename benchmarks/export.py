"""What exporting the shipped model costs, and what the artefact gains, keeps and needs.

``python benchmarks/export.py export --folder F`` exports as a user does, from nothing. ``... compare --folder F`` draws
images with the in-process compiled path and with the artefact in turns: time, PSNR, logits under teacher forcing.
``... start --folder F`` runs `sparvar run` in a process of its own and asks the artefact's process for its memory.
``... onnx --folder F`` compares sparse and dense ONNX exports. All write into one result file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import sparvar
from sparvar.artefact import Artefact, load, verify
from sparvar.evaluate.machine import machine
from sparvar.evaluate.metrics import psnr
from sparvar.export.capture import all_dense
from sparvar.files import write_whole
from sparvar.scale_plans import load_plan, shipped_plans
from sparvar.zoo import CLASSES, landscape

OUT = Path(__file__).parent / "results" / "export-cpu.json"
Folder = Annotated[Path, typer.Option(help="Where artefacts are.")]
app = typer.Typer(add_completion=False)


def add(out: Path, part: str, found: dict[str, Any]) -> None:
    """Put one part into the result file."""
    stored = json.loads(out.read_text()) if out.is_file() else {"benchmark": "export", "format": 1, "device": "cpu"}
    stored[part] = {"machine": machine(), **found}
    write_whole(out, (json.dumps(stored, indent=1) + "\n").encode())
    print(json.dumps({part: found}, indent=1))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@app.command()
def export(folder: Folder, formats: str = "aoti", out: Path = OUT) -> None:
    """The command, with an empty compiler cache."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as caches:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": caches}
        for name in formats.split(","):
            target = folder / name
            started = time.perf_counter()
            arguments = ["export", "zoo:landscape", "--out", str(target), "--format", name]
            subprocess.run([sys.executable, "-m", "sparvar.tools", *arguments], env=environment, check=True)
            weights = sum(tensor.numel() * 4 for tensor in landscape().state_dict().values())
            size = size_of(target)
            found[name] = {
                "seconds": time.perf_counter() - started,
                "bytes": size,
                "weights_bytes": weights,
                "over_weights_mib": (size - 1.15 * weights) / 2**20,
                "programs": len(json.loads((target / "manifest.json").read_text())["formats"][name]["programs"]),
            }
    add(out, "export", found)


class Forced:
    """Runs an artefact on the states that the in-process path went through, and keeps the logits of both."""

    def __init__(self, model: Any, artefact: Artefact) -> None:
        self.model, self.artefact = model, artefact
        self.wanted: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []
        self.totals: list[torch.Tensor] = []
        self.worst: list[float] = []

    def record(self, label: str, seed: int) -> None:
        """One in-process generation."""
        logits, tokens, accumulate = self.model.logits, self.model.tokens, self.model.tokenizer.accumulate
        self.wanted, self.tokens, self.totals = [], [], []

        def kept(x: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
            self.wanted.append(logits(x, head).clone())
            return self.wanted[-1]

        def tokened(*args: Any) -> torch.Tensor:
            self.tokens.append(tokens(*args).clone())
            return self.tokens[-1]

        def accumulated(*args: Any) -> torch.Tensor:
            self.totals.append(accumulate(*args).clone())
            return self.totals[-1]

        self.model.logits, self.model.tokens, self.model.tokenizer.accumulate = kept, tokened, accumulated
        try:
            self.model.generate([label], seed=seed)
        finally:
            del self.model.logits, self.model.tokens, self.model.tokenizer.accumulate

    def run(self, label: int, seed: int) -> float:
        """The artefact on the recorded states; returns the largest difference of a logit."""
        _, _, head = self.model.condition(torch.tensor([label, len(self.model.classes)]))
        programs, worst, compared = dict(self.artefact.programs), 0.0, 0
        scales = len(self.wanted)

        def leave(scale: int) -> Any:
            step = next(each for each in self.artefact.format.steps if each.program == f"scale{scale:02d}-leave")
            place = step.inputs.index("x")

            def run(values: list[torch.Tensor]) -> list[torch.Tensor]:
                nonlocal worst, compared
                compared += 1
                found = self.model.logits(values[place], head)
                worst = max(worst, float((found - self.wanted[scale - 1]).abs().max()))
                given = {"total": self.totals[scale - 1]}
                if scale < scales:
                    given["x"] = self.tokens[scale]
                return [given[name].clone() for name in step.outputs]

            return run

        for scale in range(1, scales + 1):
            self.artefact.programs[f"scale{scale:02d}-leave"] = leave(scale)
        try:
            self.artefact.generate([label], seed=seed)
        finally:
            self.artefact.programs.update(programs)
        if compared != scales:
            raise SystemExit(f"logits of {compared} scales were compared, not of {scales}")
        return worst


@app.command()
def compare(folder: Folder, images: int = 8, seed: int = 700, threads: int = 2, out: Path = OUT) -> None:
    """The artefact against the in-process compiled path, in turns."""
    torch.set_num_threads(threads)
    model = sparvar.compile(landscape())
    artefact = load(folder / "aoti")
    forced = Forced(model, artefact)
    rows: list[dict[str, float]] = []
    for number in range(-1, images):  # the first is a warm-up
        label, begin = number % len(CLASSES), seed + number
        took: dict[str, float] = {}
        drawn: dict[str, torch.Tensor] = {}
        paths: list[tuple[str, Any]] = [
            ("in_process", lambda label=label, begin=begin: model.generate([label], seed=begin)),
            ("aoti", lambda label=label, begin=begin: artefact.generate([label], seed=begin)),
        ]
        for name, draw in paths if number % 2 else paths[::-1]:
            started = time.perf_counter()
            drawn[name] = draw()
            took[name] = time.perf_counter() - started
        if number >= 0:
            rows.append(
                {**took, "ratio": took["aoti"] / took["in_process"], "db": psnr(drawn["aoti"], drawn["in_process"])}
            )
    worst = []
    for number in range(2):
        forced.record(CLASSES[number], seed + number)
        worst.append(forced.run(number, seed + number))
    add(
        out,
        "compare",
        {
            "images": images,
            "threads": threads,
            **{name: spread([row[name] for row in rows]) for name in ("in_process", "aoti", "ratio")},
            "psnr_db": [row["db"] if row["db"] != float("inf") else "equal" for row in rows],
            "forced_logits_largest_difference": max(worst),
        },
    )


LOADED = """
import json, sys, time
started = time.perf_counter()
import sparvar
artefact = sparvar.load(sys.argv[1], low_memory=sys.argv[2] == "low")
def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
loaded = time.perf_counter() - started
before = kib("VmRSS") * 1024
image = artefact.generate(["mountain"], seed=7)
first = time.perf_counter() - started
begun = time.perf_counter()
open("/proc/self/clear_refs", "w").write("5")
artefact.generate(["sea"], seed=8)
again = time.perf_counter() - begun
peak = kib("VmHWM") * 1024
print(json.dumps({"load": loaded, "first": first, "again": again, "before": before, "peak": peak,
    "resident": kib("VmRSS") * 1024, "stated": dict(artefact.manifest.memory)}))
"""


@app.command()
def start(folder: Folder, runs: int = 5, out: Path = OUT) -> None:
    """From a new process to the first image, and the memory of a generation, with freed memory kept and given back."""
    found: dict[str, list[dict[str, Any]]] = {"kept": [], "low": []}
    for _ in range(runs):
        for how, each in found.items():
            command = [sys.executable, "-c", LOADED, str(folder / "aoti"), how]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            each.append(json.loads(done.stdout.splitlines()[-1]))
    rows, low = found.values()
    stated = rows[0]["stated"]
    total = stated["weights"] + stated["constants"] + stated["buffers"] + stated["workspace"]
    add(
        out,
        "start",
        {
            "runs": runs,
            "load_to_first_image_less_generation": spread([row["first"] - row["again"] for row in rows]),
            "load": spread([row["load"] for row in rows]),
            "generation": spread([row["again"] for row in rows]),
            "stated_bytes": stated,
            "stated_total": total,
            "peak_less_loaded_process": spread([row["peak"] - row["before"] for row in rows]),
            "peak_less_loaded_process_low_memory": spread([row["peak"] - row["before"] for row in low]),
            "generation_low_memory": spread([row["again"] for row in low]),
        },
    )


@app.command()
def onnx(folder: Folder, images: int = 4, seed: int = 700, out: Path = OUT) -> None:
    """Sparse against dense ONNX of the same model, in turns, and against the in-process path."""
    folder.mkdir(parents=True, exist_ok=True)
    dense = folder / "dense.json"
    all_dense(load_plan(next(iter(shipped_plans())))).save(dense)
    for name, plan in (("onnx-dense", str(dense)), ("onnx", "auto")):
        if not (folder / name).exists():
            arguments = ["export", "zoo:landscape", "--plan", plan, "--out", str(folder / name), "--format", "onnx"]
            subprocess.run([sys.executable, "-m", "sparvar.tools", *arguments], check=True)
    loaded = {name: load(folder / name, format="onnx") for name in ("onnx", "onnx-dense")}
    model = sparvar.compile(landscape())
    rows = []
    for number in range(-1, images):
        took, drawn = {}, {}
        label = number % len(CLASSES)
        for name in list(loaded) if number % 2 else list(loaded)[::-1]:
            started = time.perf_counter()
            drawn[name] = torch.from_numpy(loaded[name].generate([label], seed=seed + number))
            took[name] = time.perf_counter() - started
        if number >= 0:
            wanted = model.generate([label], seed=seed + number)
            rows.append({**took, "gain": took["onnx-dense"] / took["onnx"], "db": psnr(drawn["onnx"], wanted)})
    found = {name: spread([row[name] for row in rows]) for name in ("onnx", "onnx-dense", "gain", "db")}
    checked = verify(folder / "onnx")
    memory = {"workspace": checked.workspace, "stated_workspace": checked.stated_workspace}
    add(out, "onnx", {"images": images, **found, "verify_db": checked.psnr_db, **memory})


if __name__ == "__main__":
    app()
