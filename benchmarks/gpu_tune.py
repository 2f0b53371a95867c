"""Time configurations of the Triton kernels at Infinity-2B's last scale: how the pinned ones were chosen.

``python benchmarks/gpu_tune.py``, on a GPU of compute capability 9.0, compiles every configuration in parallel
processes first (Triton's cache on disk), then times them in turns as CUDA graphs and prints a table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from gpu_cases import SCHEDULES, TILE, KernelCase, Sizes, _graph
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparvar import kernels
from sparvar.kernels.attention_stats import gpu as stats
from sparvar.kernels.column_sparse_attention import gpu as sparse
from sparvar.kernels.column_sparse_attention import hopper
from sparvar.kernels.column_sums import gpu as sums
from sparvar.kernels.common.blocks import Block
from sparvar.kernels.common.checks import attention_output

BLOCKS = [
    Block(m, n, warps, stages)
    for m, n, warps in (
        (128, 32, 8),
        (128, 64, 8),
        (128, 128, 8),
        (128, 32, 4),
        (128, 64, 4),
        (64, 64, 4),
        (64, 128, 4),
    )
    for stages in (2, 3, 4)
    if not (m == n == 128 and stages > 3)
]


def runs(case: KernelCase) -> dict[str, Callable[[], object]]:
    """Every kernel with every configuration."""
    q, k, v = case._inputs(0)
    scale = case.sizes.head_dim**-0.5
    tiles = kernels.QueryTiles(case.schedule[case.scale - 1], TILE)
    lists = case._lists()
    _, lse, _ = stats.run(q, k, v, scale)
    found: dict[str, Callable[[], object]] = {}
    for block in BLOCKS:
        name = f"m{block.m} n{block.n} w{block.warps} s{block.stages}"
        for which, columns in lists.items():

            def gather(block: Block = block, columns: tuple = columns, contiguous: bool = False) -> object:
                return sparse.run(q, k, v, columns, scale, tiles, None, sparse.Choice(block, contiguous))

            found[f"{which} {name}"] = gather
            if which == "csla":
                found[f"csla-runs {name}"] = lambda gather=gather: gather(contiguous=True)
        found[f"stats {name}"] = lambda block=block: stats.run(q, k, v, scale, block)
        found[f"plain {name}"] = lambda block=block: stats.run(q, k, v, scale, block, False)
        for span in (1024, 2048, 4096):
            found[f"sums {name} span{span}"] = lambda block=block, span=span: sums.run(
                q, k, lse, scale, tiles, 1, block, span
            )
    for which, columns in lists.items():
        for step, stages in ((64, 3), (64, 4), (64, 5), (128, 2)):

            def persistent(columns: tuple = columns, steps: tuple[int, int] = (step, stages)) -> object:
                out = attention_output(q)
                hopper.run((q, k, v), out, columns, None, scale, tiles, None, steps)
                return out

            found[f"{which}-hopper n{step} s{stages}"] = persistent
    found["select"], found["map"] = case._list_work(q.device)
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):

        def dense(backend: SDPBackend = backend) -> object:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        found[f"dense {name}"] = dense
    print({name: float(counts.float().mean()) for name, (_, counts) in lists.items()}, k.shape)
    return found


def main(
    part: Annotated[str, typer.Option(help="i/n: compile that share and stop.")] = "",
    only: Annotated[str, typer.Option(help="Kernels, separated by commas.")] = "",
    processes: Annotated[int, typer.Option()] = 14,
    out: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    sizes = Sizes(torch.device("cuda"), (("2B", 16),), 128, 2, torch.bfloat16, 1, 13)
    case = KernelCase("2B 1:1 64x64", sizes, 16, SCHEDULES["1:1"], 13)
    if part:
        number, of = (int(x) for x in part.split("/"))
    else:
        extra = ["--only", only] if only else []
        each = [[sys.executable, __file__, "--part", f"{i}/{processes}", *extra] for i in range(processes)]
        for one in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in each]:
            one.wait()
    with torch.inference_mode():
        every = runs(case)
        if only:
            every = {name: run for name, run in every.items() if name.split()[0] in only.split(",")}
        launches = {}
        failed = {}
        for index, (name, run) in enumerate(every.items()):
            if part and index % of != number:
                continue
            try:
                run()
                torch.cuda.synchronize()
                if not part:
                    launches[name] = _graph(run, sizes.device)
            except Exception as error:  # a configuration that does not fit is part of the answer
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        if part:
            return
        times: dict[str, list[float]] = {name: [] for name in launches}
        for turn in range(12):
            for name, launch in launches.items():
                elapsed = launch()
                if turn >= 2:
                    times[name].append(elapsed)
    found = {name: statistics.median(values) for name, values in times.items()}
    if out:
        out.write_text(json.dumps({"ms": found, "failed": failed}, indent=1))
    for kernel in dict.fromkeys(name.split()[0] for name in found):
        best = sorted((ms, name) for name, ms in found.items() if name.split()[0] == kernel)[:8]
        print(*(f"{ms:.3f} {name}" for ms, name in best), sep="\n")


if __name__ == "__main__":
    typer.run(main)
