"""The `sparvar` command: one typer application, one module per command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sparvar.tools.cmd_bench import bench
from sparvar.tools.cmd_calibrate import calibrate
from sparvar.tools.cmd_demo import demo
from sparvar.tools.cmd_doctor import doctor
from sparvar.tools.cmd_explain import explain
from sparvar.tools.cmd_export import export
from sparvar.tools.cmd_inspect import inspect
from sparvar.tools.cmd_run import run
from sparvar.tools.cmd_transfer import transfer
from sparvar.tools.cmd_verify import verify
from sparvar.tools.common import EXIT_CODES, paragraphs
from sparvar.version import __version__

app = typer.Typer(
    name="sparvar",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparvar {__version__}")
        raise typer.Exit


@app.callback()
def sparvar(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fast next-scale (VAR) image generation: a torch.compile backend, without training.

    Start with [cyan]sparvar demo --out demo-output[/]; if that fails, [cyan]sparvar doctor[/] says why.
    """


for _command in (demo, calibrate, transfer, explain, export, run, verify, inspect, doctor):
    app.command(help=paragraphs(_command), epilog=EXIT_CODES)(_command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="sparvar")
    except KeyboardInterrupt:
        sys.exit(130)
