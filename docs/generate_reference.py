"""Write the reference pages that the code itself knows: commands, plan schema, options and environment variables.

``python docs/generate_reference.py FOLDER``; ``make docs`` calls it. The pages are not kept in the repository.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from pydantic import BaseModel
from rich.text import Text
from typer.models import ArgumentInfo, ParameterInfo

from sparvar.env import VARIABLES
from sparvar.options import Options
from sparvar.scale_plans import Plan, json_schema
from sparvar.tools.cli import app
from sparvar.tools.console import EXIT_CODES


def write_reference(folder: Path) -> list[Path]:
    """Write every generated page into ``folder`` and return their paths."""
    pages = {"commands": commands(), "plan": plan(), "options": options(), "environment": environment()}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages.items():
        path = folder / f"{name}.md"
        path.write_text(text)
        written.append(path)
    return written


def commands() -> str:
    """The command line: every command with its help, arguments and options."""
    callback = app.registered_callback
    assert callback is not None and callback.callback is not None
    lines = ["# Commands", "", *_help(inspect.getdoc(callback.callback) or "")]
    for name, command in _leaves(app, "sparvar"):
        lines += [
            f"## {name}",
            "",
            *_help(inspect.getdoc(command) or ""),
            "| argument or option | what it does | default |",
        ]
        lines += ["|---|---|---|", *(_parameter(each) for each in _parameters(command)), ""]
    return "\n".join([*lines, _plain(EXIT_CODES), ""])


def _leaves(group: typer.Typer, path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield f"{path} {name}", command.callback
    for below in group.registered_groups:
        assert below.typer_instance is not None
        yield from _leaves(below.typer_instance, f"{path} {below.name}")


def _help(text: str) -> Iterator[str]:
    """Paragraphs of a help text; indented ones are what is typed."""
    for part in text.strip().split("\n\n"):
        yield from (["```bash", textwrap.dedent(part), "```"] if part.startswith(" ") else [_plain(part)])
        yield ""


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command."""

    name: str
    hint: Any
    info: ParameterInfo
    default: Any


def _parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *rest = get_args(hints[name])
        info = next(each for each in rest if isinstance(each, ParameterInfo))
        yield Parameter(name, kind, info, parameter.default)


def _parameter(parameter: Parameter) -> str:
    info, hint = parameter.info, parameter.hint
    help_text = _plain(info.help or "")
    kinds = [each for each in (hint, *get_args(hint)) if isinstance(each, type)]
    choices = next((each for each in kinds if issubclass(each, Enum)), None)
    if choices is not None:
        help_text = f"{help_text} One of {', '.join(f'`{each.value}`' for each in choices)}."
    if isinstance(info, ArgumentInfo):
        names = str(info.metavar or parameter.name.upper())
    else:
        flag = f"--{parameter.name.replace('_', '-')}"
        # In ``Annotated`` the first spelling stands where the default was before.
        first = (info.default,) if isinstance(info.default, str) and info.default.startswith("-") else ()
        spelt = (*first, *(info.param_decls or ()))
        names = ", ".join(spelt or (f"{flag}/--no-{flag[2:]}" if hint is bool else flag,))
        names += f" {info.metavar}" if info.metavar else ""
    given = getattr(parameter.default, "value", parameter.default)
    required = " (required)" if given is inspect.Parameter.empty else ""
    default = "" if given is inspect.Parameter.empty or given is None or given == [] or hint is bool else f"`{given}`"
    return f"| `{names}`{required} | {_cell(help_text)} | {default} |"


def plan() -> str:
    """The fields of a plan, from its JSON Schema and the docstrings of its records."""
    schema = json_schema()
    lines = [
        "# Plan files",
        "",
        "A plan is a JSON file. `sparvar inspect PLAN` shows it as a table, `--check` lists its contradictions.",
        "`sparvar.scale_plans.json_schema()` returns this page as JSON Schema for editors.",
        "",
    ]
    records = _records(Plan)
    for name, fields in [("Plan", schema), *schema["$defs"].items()]:
        record = records.get(name)
        about = inspect.getdoc(record) if record is not None and name != "Plan" else fields.get("description", "")
        lines += [f"## {name}", "", _text(about or ""), "", "| field | type | default | meaning |", "|---|---|---|---|"]
        said = _field_docs(record) if record is not None else {}
        required = fields.get("required", [])
        for field, facts in fields["properties"].items():
            default = "required" if field in required else _default(facts.get("default"))
            about = _cell(said.get(field) or facts.get("description") or _about(records, facts))
            lines.append(f"| `{field}` | {_type(facts)} | {default} | {about} |")
        lines.append("")
    return "\n".join(lines)


def _about(records: dict[str, type[BaseModel]], facts: dict[str, Any]) -> str:
    """The first paragraph of the record that a field holds, or nothing."""
    name = next((each for each in records if f"[{each}](" in _type(facts)), None)
    return "" if name is None else (inspect.getdoc(records[name]) or "").partition("\n\n")[0]


def _records(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every record class below `sparvar.scale_plans`, by name."""
    found: dict[str, type[BaseModel]] = {root.__name__: root}
    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        for each in waiting.pop().__subclasses__():
            waiting.append(each)
            if each.__module__.startswith("sparvar.scale_plans"):
                found.setdefault(each.__name__, each)
    return found


def _field_docs(record: type[BaseModel]) -> dict[str, str]:
    """What stands as a string below each field, and below ``Attributes:`` in the docstring."""
    said: dict[str, str] = {}
    for each in reversed(record.__mro__):
        if not each.__module__.startswith("sparvar"):
            continue
        said |= _attributes(inspect.getdoc(each) or "")
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(before, ast.AnnAssign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                assert isinstance(before.target, ast.Name)
                said[before.target.id] = inspect.cleandoc(text.value)
    return said


def _attributes(doc: str) -> dict[str, str]:
    """The entries below ``Attributes:`` of a docstring, by name."""
    _, _, after = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in after.split("\n"):
        if line.strip() and not line.startswith("    "):
            break
        head, colon, rest = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            names = [name.strip() for name in head.split(",")]
            found |= dict.fromkeys(names, rest)
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _default(value: Any) -> str:
    return "" if value in (None, "", [], {}) or isinstance(value, dict) else f"`{json.dumps(value)}`"


def _type(facts: dict[str, Any]) -> str:
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in facts:
        return ", ".join(f"`{each}`" for each in facts["enum"])
    if "anyOf" in facts:
        return " or ".join(_type(each) for each in facts["anyOf"])
    if facts.get("type") == "array":
        parts = facts.get("prefixItems")
        return f"({', '.join(_type(each) for each in parts)})" if parts else f"list of {_type(facts.get('items', {}))}"
    if facts.get("type") == "object":
        values = facts.get("additionalProperties")
        return f"map to {_type(values)}" if isinstance(values, dict) else "object"
    return str(facts.get("type", facts.get("const", "any")))


def options() -> str:
    """What ``torch.compile(..., options={...})`` and ``sparvar.compile`` take."""
    said = _attributes(inspect.getdoc(Options) or "")
    lines = [
        "# Options",
        "",
        'Of `torch.compile(model, backend="sparvar", options={...})` and `sparvar.compile(model, ...)`.',
    ]
    lines += [
        "An unknown name is an error that names the nearest valid one.",
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | `{getattr(Options(), name)!r}` | {_cell(text)} |" for name, text in said.items()]
    return "\n".join([*lines, ""])


def environment() -> str:
    """The environment variables."""
    lines = [
        "# Environment variables",
        "",
        "`sparvar doctor` shows those that are set.",
        "",
        "| variable | default | meaning |",
    ]
    lines += ["|---|---|---|"]
    lines += [
        f"| `{name}` | {f'`{default}`' if default else ''} | {_cell(said)} |"
        for name, (default, said) in VARIABLES.items()
    ]
    return "\n".join([*lines, ""])


def _plain(markup: str) -> str:
    """Text of rich markup, safe in Markdown."""
    return Text.from_markup(markup).plain.strip()


def _text(doc: str) -> str:
    """A docstring before its sections, with names in single backquotes."""
    return doc.partition("\n\nAttributes:")[0].replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(re.sub(r":\w+:`", "`", text).replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    for page in write_reference(Path(sys.argv[1])):
        print(page)
