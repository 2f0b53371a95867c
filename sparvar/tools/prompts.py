"""The prompts that a command draws with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparvar.errors import OptionError, message


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a file: one per line, JSON where a line begins like it, else its text; empty lines do not count.

    Raises:
        OptionError: the file cannot be read, a line is not UTF-8 or is broken JSON, or there is no prompt.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise OptionError(message(f"--prompts {path}", "be a readable file", error.strerror or str(error))) from error
    prompts: list[Any] = []
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            text = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            must = "be UTF-8 text"
            raise OptionError(
                message(where, must, f"byte {error.start} that is not", "save the file as UTF-8")
            ) from error
        if not text:
            continue
        if text[0] in '[{"' or text.lstrip("-").isdigit():
            try:
                prompts.append(json.loads(text))
            except ValueError as error:
                must = "be a label or a JSON value"
                raise OptionError(message(where, must, f"broken JSON ({error})", "mend or remove the line")) from error
        else:
            prompts.append(text)
    if not prompts:
        raise OptionError(message(f"--prompts {path}", "hold at least one prompt", "none", "write one per line"))
    return prompts
