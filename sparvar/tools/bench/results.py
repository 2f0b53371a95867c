"""What every benchmark's result has, and how it is shown and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sparvar.evaluate.machine import machine
from sparvar.tools.console import as_json, results
from sparvar.tools.result_files import write_files


def device() -> str:
    """Where benchmarks run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def framed(what: str, **content: Any) -> dict[str, Any]:
    """The content of a result file, with what it is and the machine in front."""
    return {"benchmark": what, "format": 1, "device": device(), "machine": machine(), **content}


def finish(result: dict[str, Any], table: Table, file: Path | None) -> None:
    """Write the result, where a file was named, and show its table."""
    if file is not None:
        write_files(file.parent, {file.name: as_json(result).encode()})
    screen = results()
    screen.print(table)
    if file is not None:
        screen.print(f"Results: {file}", soft_wrap=True)
