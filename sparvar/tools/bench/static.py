"""`sparvar bench ops --static`: every Triton kernel compiled for every target, and what its machine code says."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from sparvar import kernels
from sparvar.errors import KernelError, message
from sparvar.tools.console import notes, show_table
from sparvar.tools.progress_bar import ProgressBar

WORKERS = 2
QUICK_DIM, QUICK_DTYPE = 128, "bf16"


def _compile(case: kernels.StaticCase) -> dict[str, Any]:
    torch.set_num_threads(1)
    facts = kernels.static_compile(case)
    return {**asdict(case), **facts.as_dict(), "problems": kernels.static_problems(case, facts)}


def run(quick: bool) -> dict[str, Any]:
    """The content of a static result file. Compilations run in two processes of one thread each."""
    cases = kernels.static_cases()
    if quick:
        cases = [
            case
            for case in cases
            if (case.head_dim, case.dtype, case.variant) == (QUICK_DIM, QUICK_DTYPE, "pinned")
            and case.target.startswith("sm_")
        ]
    done = []
    workers = min(WORKERS, os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, ProgressBar(notes(), len(cases)) as progress:
        for found in pool.map(_compile, cases):
            done.append(found)
            progress.step(f"{found['kernel']} {found['target']} {found['dtype']}")
    return {
        "benchmark": "static-kernels",
        "format": 1,
        "quick": quick,
        "toolchain": kernels.static_toolchain(),
        "gpus": [asdict(gpu) for gpu in kernels.STATIC_GPUS],
        "cases": done,
    }


def table(result: dict[str, Any]) -> Table:
    """One row per compilation."""
    rows = []
    for case in result["cases"]:
        block = case["block"]
        rows.append(
            (
                case["kernel"] + ("" if case["variant"] == "pinned" else f", {case['variant']}"),
                case["target"],
                case["dtype"],
                str(case["head_dim"] or ""),
                f"{block['m']}x{block['n']} {block['warps']}w {block['stages']}s",
                str(case["registers"]),
                str(case["spills"]),
                str(case["stack"]),
                f"{case['shared'] / 1024:.0f} of {case['shared_limit'] / 1024:.0f} KiB",
                case["matrix"] or "none",
                ", ".join(f"{100 * share:.0f} %" for share in case["of_peak"].values()),
            )
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["toolchain"].items())
    columns = ("kernel", "target", "dtype", ">head", "block", ">registers", ">spills", ">stack", ">shared", "matrix")
    return show_table(
        f"Triton kernels, compiled without a GPU ({versions})",
        (*columns, "of peak, uncached"),
        rows,
        "Block: queries x keys, warps, stages. Spills: instructions. Of peak, uncached: what memory bandwidth allows "
        "were no row in a cache, on " + ", ".join(f"{gpu['name']} ({gpu['target']})" for gpu in result["gpus"]),
    )


def refuse_problems(result: dict[str, Any]) -> None:
    """Raise `KernelError` if a kernel is not fit to run."""
    for case in result["cases"]:
        if case["problems"]:
            name = kernels.StaticCase(case["kernel"], case["variant"], case["target"], case["dtype"], case["head_dim"])
            raise KernelError(message(name.name, "be fit to run", "; ".join(case["problems"])))
