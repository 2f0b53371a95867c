"""Everything that needs a GPU, in one run: correctness, kernels, whole transformers of published shapes.

``python benchmarks/gpu.py`` on a machine with an NVIDIA GPU writes ``benchmarks/results/gpu-<device>.json`` and a
plot.  ``--dry-run`` runs every step at toy sizes on whatever device there is and writes nothing: it shows that the
script works.

Kernels are timed as CUDA graphs between events, variants in turns over rotating inputs, medians kept.  A variant that
disagrees with dense attention over the same columns in float32 is an error, never a time.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu_cases import SCHEDULES, KernelCase, Sizes, kernel_cases, transformer_case

from sparvar.evaluate.machine import machine

RESULTS = Path(__file__).parent / "results"
REACH = {
    "csla": 0.75,  # of ideal, against the faster of SDPA flash and cuDNN
    "column_sparse": 0.65,
    "column_sums": 0.6,  # of one dense attention, at most
    "entropy": 1.08,  # of our own kernel without it, at most
    "lists": 0.03,  # of the attention they serve, at most
    "eager": 1.45,
    "inductor": 1.35,
}
"""What the project asks for on an H200 in bf16."""


LIMIT = 150
"""Seconds that one of the two correctness runs may take."""


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path or in a CUDA toolkit, whose folder often is not on the path."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in (*homes, "/usr/local/cuda"))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def correctness(quick: bool) -> dict[str, Any]:
    """Closing lines of the tests marked ``gpu``, plain and, on small shapes, under compute-sanitizer.

    A tool that is not there is named in the result: what was not checked must not look like what was.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/kernels/test_gpu.py"]
    root = Path(__file__).parents[1]
    found: dict[str, Any] = {}
    together = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    runs = {"pytest": [*command, *together, *(["-k", "small"] if quick else [])]}
    if sanitizer := find_sanitizer():
        small = ["-k", "small or 128-torch.bfloat16"]
        runs["compute-sanitizer"] = [sanitizer, "--error-exitcode", "1", *command, *small]
    else:
        found["compute-sanitizer"] = {"not run": "compute-sanitizer is neither on the path nor in a CUDA toolkit"}
    for name, run in runs.items():
        # torch's caching allocator would hide from the sanitizer what is read behind a tensor
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "compute-sanitizer" else {}
        try:
            done = subprocess.run(
                run, cwd=root, capture_output=True, text=True, check=False, env={**os.environ, **apart}, timeout=LIMIT
            )
        except subprocess.TimeoutExpired as error:
            found[name] = {"not finished": f"{LIMIT} s", "tail": str(error.stdout or b"")[-2000:]}
            continue
        lines = (done.stdout + done.stderr).strip().splitlines()
        found[name] = {"exit": done.returncode, "last": lines[-1] if lines else ""}
        if done.returncode not in (0, 5):  # 5: no test was selected, that is no GPU
            found[name]["tail"] = lines[-40:]
    return found


def judge(row: dict[str, Any]) -> dict[str, float]:
    """The ratios that the project's lines are about, from the medians of one case."""
    ms = row["milliseconds"]
    dense = min(ms[name] for name in ("sdpa_flash", "sdpa_cudnn", "sdpa") if name in ms)
    found = {"dense_ms": dense}
    for name in ("csla", "column_sparse"):
        if name in ms:
            found[f"{name}_speedup"] = dense / ms[name]
            found[f"{name}_of_ideal"] = dense / ms[name] / row["ideal"][name]
    if "column_sums" in ms:
        found["column_sums_cost"] = ms["column_sums"] / dense
    if "stats" in ms and "stats_without_entropy" in ms:
        found["entropy_cost"] = ms["stats"] / ms["stats_without_entropy"]
        found["stats_over_flash"] = ms["stats"] / dense
    if "map" in ms and "column_sparse" in ms:  # one selection serves the scales behind the decision
        found["lists_share"] = (ms["map"] + ms["select"] / row["served"]) / ms["column_sparse"]
    if "flex" in ms and "csla" in ms:
        found["csla_over_flex"] = ms["flex"] / ms["csla"]
    return found


def run_kernels(case: KernelCase, rounds: int) -> dict[str, Any]:
    """Time the variants of one case in turns; every launch goes to another input set than the one before."""
    launches, skipped = case.prepare()
    times: dict[str, list[float]] = {name: [] for name in launches}
    for turn in range(rounds + 2):
        for name, sets in launches.items():
            elapsed = sets[turn % len(sets)]()
            if turn >= 2:
                times[name].append(elapsed)
    row: dict[str, Any] = {
        "case": case.name,
        "shape": case.shape,
        "kept": case.kept,
        "ideal": case.ideal,
        "served": len(case.schedule) - case.source,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "skipped": skipped,
    }
    row["judged"] = judge(row)
    return row


def fill_caches(shapes: list[str]) -> list[subprocess.Popen[bytes]]:
    """Compile every transformer in processes of their own, at once, so that the timed one finds it on disk."""
    command = [sys.executable, str(Path(__file__)), "--fill"]
    return [
        subprocess.Popen([*command, f"{shape}:{variant}"], stdout=subprocess.DEVNULL)
        for shape in shapes
        for variant in ("inductor", "sparvar")
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Achieved share of the ideal speed-up per case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in result["kernels"] if "csla_of_ideal" in row["judged"]]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6), dpi=130)
    for offset, (name, colour) in enumerate((("csla", "#2a6f97"), ("column_sparse", "#e07a5f"))):
        values = [100 * row["judged"].get(f"{name}_of_ideal", 0.0) for row in rows]
        places = [index + 0.36 * offset for index in range(len(rows))]
        axes.barh(places, values, height=0.34, color=colour, label=name.replace("_", "-"))
        axes.axvline(100 * REACH[name], color=colour, linestyle="--", linewidth=1)
    axes.set_yticks([index + 0.18 for index in range(len(rows))], [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"% of the ideal speed-up over dense attention, {result['device']} (dashed: what is asked for)")
    axes.set_xlim(0, 100)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.07), ncols=2)
    figure.tight_layout()
    figure.savefig(path)


def main(
    rounds: Annotated[int, typer.Option(help="Timed launches per variant.")] = 30,
    models: Annotated[str, typer.Option(help="Shapes of whole transformers, separated by commas; '' for none.")] = (
        "infinity-2b,infinity-8b"
    ),
    ratios: Annotated[str, typer.Option(help="Aspect ratios of kernels, separated by commas; '' for none.")] = (
        ",".join(SCHEDULES)
    ),
    skip_tests: Annotated[bool, typer.Option(help="Do not run the correctness tests first.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Toy sizes on any device; writes nothing.")] = False,
    fill: Annotated[str, typer.Option(help="shape:variant, compiled into the caches and no more.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON file instead of the one named after the device.")] = None,
) -> None:
    """Run everything; results are written as they come."""
    if fill:
        shape, variant = fill.split(":")
        transformer_case(shape, Sizes.full(torch.device("cuda")), -1, (variant,), depth=8)
        return
    if not torch.cuda.is_available() and not dry_run:
        raise typer.BadParameter("this machine has no CUDA device; --dry-run shows that the script works")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "dry run without a GPU"
    sizes = Sizes.toy(device) if dry_run else Sizes.full(device)
    result: dict[str, Any] = {"benchmark": "gpu", "format": 1, "device": name, "machine": machine(), "reach": REACH}
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = out or RESULTS / f"gpu-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        """Write what there is: a run that is cut short loses nothing."""
        if not dry_run:
            path.write_text(json.dumps(result, indent=1) + "\n")

    result["kernels"] = []
    for case in kernel_cases(sizes, SCHEDULES):
        if case.ratio not in ratios.split(","):
            continue
        row = run_kernels(case, 2 if dry_run else rounds)
        result["kernels"].append(row)
        print(row["case"], json.dumps({key: round(value, 3) for key, value in row["judged"].items()}), flush=True)
        keep()
    shapes = ["tiny"] if dry_run else [shape for shape in models.split(",") if shape]
    gc.collect()  # graphs and their memory, which the processes below want
    torch.cuda.empty_cache()
    fillers = [] if dry_run else fill_caches(shapes)
    result["correctness"] = {"not run": "--skip-tests"} if skip_tests else correctness(quick=dry_run)
    print(json.dumps(result["correctness"], indent=1), flush=True)
    keep()
    for filler in fillers:  # nothing else may run while times are taken
        filler.wait()
    result["transformers"] = []
    for shape in shapes:
        row = transformer_case(shape, sizes, 2 if dry_run else 4)
        result["transformers"].append(row)
        print(shape, json.dumps(row["ratios"]), json.dumps(row["first_seconds"]), flush=True)
        keep()
    if not dry_run and result["kernels"]:
        draw(result, path.with_suffix(".png"))
    print("dry run, nothing written" if dry_run else f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
