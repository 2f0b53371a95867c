"""`sparvar bench ops`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from sparvar import kernels
from sparvar.tools.bench import static
from sparvar.tools.bench.ops import cases, run_case
from sparvar.tools.bench.results import finish, framed
from sparvar.tools.console import handled, show_table
from sparvar.tools.options import JsonFile
from sparvar.tools.progress_bar import Lines
from sparvar.tools.result_files import prepare_file

ROUNDS, QUICK_ROUNDS = 9, 3
HEADS, QUICK_HEADS = 8, 1


@handled
def ops(
    json: JsonFile = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One head, three rounds, no FlexAttention; with --static, 12 compilations.")
    ] = False,
    static_code: Annotated[
        bool,
        typer.Option("--static", help="Compile the Triton kernels for GPUs that need not be here, and read the code."),
    ] = False,
) -> None:
    """Time every op on the shapes of a one-megapixel model, against SDPA and FlexAttention with the same mask.

    Every variant of a case runs once per round, in turns; ratios are taken within a round, and their median and
    quartiles are shown. A variant that disagrees with SDPA is an error, not a time.

    With [cyan]--static[/] nothing is timed: the table shows registers, spills and memory of every compiled kernel,
    and the exit code is 1 if one of them spills, does not fit or misses the tensor cores.

    [dim]Examples[/]

        sparvar bench ops --json benchmarks/results/ops-cpu.json

        sparvar bench ops --static --json benchmarks/results/static-kernels.json
    """
    prepare_file(json)
    if static_code:
        found = static.run(quick)
        finish(found, static.table(found), json)
        static.refuse_problems(found)
        return
    result = _run(quick)
    finish(result, _table(result), json)


def _run(quick: bool) -> dict[str, Any]:
    """The content of an ops result file."""
    rounds, heads = (QUICK_ROUNDS, QUICK_HEADS) if quick else (ROUNDS, HEADS)
    done, progress = [], Lines()
    for case in cases(heads, flex=not quick):
        progress.step(case.what)
        done.append(run_case(case, rounds))
    implementation = kernels.implementation("cpu")
    return framed("ops", quick=quick, rounds=rounds, warmup=1, implementation=implementation, cases=done)


def _table(result: dict[str, Any]) -> Table:
    """One row per comparison."""
    rows: list[tuple[str, ...]] = []
    for case in result["cases"]:
        ours = f"{1e3 * case['seconds']['ours']['median']:.1f} ms"
        if not case["ratios"]:
            rows.append((case["name"], ours))
        sign = "at most" if "cost" in case["ratio"] else "at least"
        for other, found in case["ratios"].items():
            reach = f"{sign} {case['reach'][other]:g}" if other in case["reach"] else ""
            time = f"{1e3 * case['seconds'][other]['median']:.1f} ms"
            spread = f"{found['median']:.2f}", f"{found['q25']:.2f} to {found['q75']:.2f}"
            ideal = f"{case['ideal']:.1f}" if case["ideal"] and other == "sdpa" else ""
            rows.append((case["name"], ours, other, time, *spread, reach, ideal))
        rows += [(case["name"], ours, other, "did not run", why) for other, why in case["skipped"].items()]
    columns = ("case", ">ours", "against", ">its time", ">ratio", ">quartiles", ">reach", ">ideal")
    return show_table("Ops: medians, ratios taken round by round", columns, rows)
