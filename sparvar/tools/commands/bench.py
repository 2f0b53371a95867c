"""`sparvar bench`: the benchmarks, each in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparvar.tools.bench.results import device
from sparvar.tools.commands.bench_generate import generate
from sparvar.tools.commands.bench_methods import methods
from sparvar.tools.commands.bench_ops import ops
from sparvar.tools.console import EXIT_CODES, handled
from sparvar.tools.result_files import prepare_folder

bench = typer.Typer(invoke_without_command=True, no_args_is_help=False)
for _command in (ops, generate, methods):
    bench.command(epilog=EXIT_CODES)(_command)


@bench.callback()
@handled
def both(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run both benchmarks and write their results to this folder.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="With --out: small, only to see that it runs.")] = False,
) -> None:
    """Measure ops and whole generations, in ratios taken within one run.

    [dim]Examples[/]

        sparvar bench --out bench-output

        sparvar bench ops --json ops-cpu.json
    """
    if context.invoked_subcommand is not None:
        if out is not None or quick:
            raise typer.BadParameter("give options after the name of the benchmark, e.g. bench ops --quick")
        return
    if out is None:
        raise typer.BadParameter("name a benchmark (ops or generate), or a folder with --out to run both")
    prepare_folder(out)
    ops(json=out / f"ops-{device()}.json", quick=quick)
    generate(json=out / f"generate-{device()}.json", quick=quick)
