"""The `sparvar` command: one typer application, one module per command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sparvar.tools.commands.bench import bench
from sparvar.tools.commands.calibrate import calibrate
from sparvar.tools.commands.demo import demo
from sparvar.tools.commands.doctor import doctor
from sparvar.tools.commands.explain import explain
from sparvar.tools.commands.export import export
from sparvar.tools.commands.inspect import inspect
from sparvar.tools.commands.run import run
from sparvar.tools.commands.transfer import transfer
from sparvar.tools.commands.verify import verify
from sparvar.tools.console import EXIT_CODES, paragraphs
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
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does, so that a MODEL in the folder one stands in is found


for _command in (demo, calibrate, transfer, explain, export, run, verify, inspect, doctor):
    app.command(help=paragraphs(_command), epilog=EXIT_CODES)(_command)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="sparvar")
    except KeyboardInterrupt:
        sys.exit(130)
