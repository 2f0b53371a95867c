"""What the commands show: consoles, tables, progress, JSON, and known failures as one paragraph."""

from __future__ import annotations

import functools
import inspect
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from sparvar.errors import SparvarError, SparvarWarning, WeightsError
from sparvar.zoo import LandscapeWeightsError

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED, STOPPED = 1, 130

EXIT_CODES = (
    "[bold]Exit codes[/]: 0 done; 1 something is wrong and the message says what; 2 the command was written wrongly;"
    " 130 stopped with Ctrl-C."
)


def results() -> Console:
    """Console for results; made at each use, because tests and pipes replace the streams."""
    return Console(file=sys.stdout, width=_width(), highlight=False)


def notes() -> Console:
    """Console for progress, notes and errors: never mixed with results."""
    return Console(file=sys.stderr, width=_width(), highlight=False)


def _width() -> int:
    # A pipe has no width; rich would assume 80 columns and fold the tables.
    return shutil.get_terminal_size(fallback=(120, 40)).columns


def paragraphs(command: Callable[..., object]) -> str:
    """A command's docstring with the lines of each paragraph joined: typer would keep the source's line breaks."""
    text = inspect.getdoc(command) or ""
    return "\n\n".join(part if part.startswith(" ") else part.replace("\n", " ") for part in text.split("\n\n"))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Table:
    """A table for the console; columns whose names begin with ``>`` are right-aligned."""
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_json(value: Any) -> None:
    """Write ``value`` as JSON to standard output, numbers that JSON lacks as null."""
    sys.stdout.write(as_json(value))


def as_json(value: Any) -> str:
    """JSON text, two spaces of indent, closing newline; infinities and NaN become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _say(kind: str, text: str) -> None:
    console = notes()
    console.print(kind, end=": ")
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def fail(text: str, code: int = FAILED) -> NoReturn:
    """End the command with a message of one paragraph on standard error."""
    _say("[bold red]error[/]", text)
    raise typer.Exit(code)


def handled(command: Command) -> Command:
    """Show known failures without a traceback, and give them their exit codes."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            _show_warnings()
            try:
                return command(*args, **kwargs)
            except SparvarError as error:
                fail(str(error))
            except LandscapeWeightsError as error:
                fail(str(WeightsError(error)))
            except KeyboardInterrupt:
                fail("stopped with Ctrl-C; files written before are whole, nothing else was changed", STOPPED)

    return run  # type: ignore[return-value]


def _show_warnings() -> None:
    plain = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if issubclass(category, SparvarWarning):
            _say("[bold yellow]warning[/]", str(message))
        else:
            plain(message, category, filename, lineno, file, line)

    warnings.showwarning = show
