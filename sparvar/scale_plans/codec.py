"""Plans as text: a byte-stable form people can read and edit, and a reader that reports everything wrong at once."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sparvar.errors import PlanError, message
from sparvar.scale_plans.check.plan_fields import closest, contradictions
from sparvar.scale_plans.data import SCHEMA_VERSION, PlanFields, as_json

LINE_WIDTH = 100
# Facts about a plan that change nothing in the computation.
OUTSIDE_DIGEST = frozenset({"name", "measured", "provenance"})
# Valid stand-ins for fields that cannot be read, so that the other fields are checked all the same.
_STAND_INS: dict[str, Any] = {
    "name": "plan",
    "model": {"sites": ["site"], "heads": 1, "head_dim": 8},
    "schedule": [[1, 1]],
    "sink_scales": 0,
    "layers": ["dense"],
}
_CUT_OFF = "the file ends too early; it was cut off: restore it or save the plan again"

P = TypeVar("P", bound=PlanFields)


def digest(plan: PlanFields) -> str:
    """``sha256:...`` over the canonical JSON of every field that changes the computation.

    Name, measurements and provenance are outside it.
    """
    fields = {name: value for name, value in as_json(plan).items() if name not in OUTSIDE_DIGEST}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def write(plan: PlanFields) -> str:
    """The plan as JSON text: the same plan always gives the same bytes."""
    fields = as_json(plan)
    ordered = {name: fields.pop(name) for name in ("schema_version", "name")}
    return _lay_out({**ordered, "digest": digest(plan), **fields}, 0) + "\n"


def _lay_out(value: Any, indent: int) -> str:
    compact = json.dumps(value, allow_nan=False)
    if not value or not isinstance(value, dict | list) or (indent and indent + len(compact) <= LINE_WIDTH - 20):
        return compact
    inner = indent + 2
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_lay_out(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items, opening, closing = _fill([json.dumps(item, allow_nan=False) for item in value], inner), "[", "]"
    body = ",\n".join(" " * inner + item for item in items)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def _fill(items: list[str], indent: int) -> list[str]:
    lines = [items[0]]
    for item in items[1:]:
        if indent + len(lines[-1]) + len(item) + 3 <= LINE_WIDTH:
            lines[-1] += ", " + item
        else:
            lines.append(item)
    return lines


def read(text: str, kind: type[P], source: str) -> tuple[P, str | None]:
    """Parse a plan's text. Returns the plan and the digest the text states, if any.

    Raises `PlanError` with every problem: syntax, unknown fields, wrong types, contradictions.
    """
    raw, problems = _parse(text, source)
    stated = raw.pop("digest", None)
    if stated is not None and not isinstance(stated, str):
        problems.append(message("digest", "be text or null", _show(stated), "remove it: it is computed again"))
        stated = None
    if "schema_version" not in raw:
        problems.append(message("schema_version", f"be {SCHEMA_VERSION}", "nothing"))
    return build(raw, kind, source, problems), stated


def _parse(text: str, source: str) -> tuple[dict[str, Any], list[str]]:
    problems: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) < len(items):
            names = [name for name, _ in items]
            twice = [name for name in table if names.count(name) > 1]
            problems.append(message(", ".join(twice), "be given once in its object", "more than one value"))
        return table

    try:
        raw = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        cut_off = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
        remedy = _CUT_OFF if cut_off else "mend the JSON there: a missing comma, quote or bracket is the usual cause"
        where = f"line {error.lineno} column {error.colno}"
        raise PlanError(f"{where}: not valid JSON ({error.msg}); {remedy}", source) from error
    except ValueError as error:  # an integer of thousands of digits
        raise PlanError(f"not a plan: {error}", source) from error
    except RecursionError as error:
        raise PlanError("not a plan: nested too deeply", source) from error
    if not isinstance(raw, dict):
        raise PlanError(message("plan", "be a JSON object", f"a {_json_name(raw)}"), source)
    return raw, problems


def build(raw: dict[str, Any], kind: type[P], source: str, found: list[str] | None = None) -> P:
    """A plan from plain JSON values, or `PlanError` with every problem, those in ``found`` first."""
    problems = list(found or ())
    version = raw.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and not isinstance(version, bool) and version != SCHEMA_VERSION:
        remedy = "the plan is from a newer sparvar: upgrade sparvar" if version > SCHEMA_VERSION else ""
        raise PlanError(message("schema_version", f"be {SCHEMA_VERSION}", _show(version), remedy), source)
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = repr(error.object[error.start])
        raise PlanError(message("plan", "hold whole Unicode characters", f"half of one, {half}"), source) from error
    plan, errors = _validate(raw, kind)
    unreadable: set[str] = set()
    if plan is None:
        problems += [_explain(error, kind) for error in errors]
        plan, unreadable = _without_errors(raw, kind, errors)
    if plan is not None:
        problems += contradictions(plan, unreadable)
    if problems or plan is None:
        raise PlanError(problems, source)
    return plan


def _validate(raw: dict[str, Any], kind: type[P]) -> tuple[P | None, list[ErrorDetails]]:
    # Strict: "5" is no number and true is no 1. The JSON mode takes lists for tuples and text for scale numbers.
    try:
        return kind.model_validate_json(json.dumps(raw), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _without_errors(raw: dict[str, Any], kind: type[P], errors: list[ErrorDetails]) -> tuple[P | None, set[str]]:
    """The plan with unknown fields and unreadable entries of scale tables dropped, other bad fields replaced.

    Also the names of the replaced fields. None if even that cannot be read (nested too deeply).
    """
    table: dict[str, Any] = json.loads(json.dumps(raw))
    unreadable: set[str] = set()
    for error in errors:
        where = error["loc"]
        if not where:
            return None, unreadable
        name = str(where[0])
        holder: Any = table
        for step in where[:-1]:
            holder = holder.get(str(step), {}) if isinstance(holder, dict) else {}
        if error["type"] == "extra_forbidden" and isinstance(holder, dict):
            holder.pop(str(where[-1]), None)
        elif name in ("cs4a", "csla", "measured") and len(where) > 1 and isinstance(table.get(name), dict):
            table[name].pop(str(where[1]), None)
        else:
            unreadable.add(name)
    for name in unreadable:
        table.pop(name, None)
        if name in _STAND_INS:
            table[name] = _STAND_INS[name]
    plan, _ = _validate(table, kind)
    return plan, unreadable


def _explain(error: ErrorDetails, kind: type[PlanFields]) -> str:
    steps = [str(step) for step in error["loc"]]
    key = bool(steps) and steps[-1] == "[key]"
    subject = ".".join(steps[:-1] if key else steps) or "plan"
    if error["type"] == "extra_forbidden":
        return f"{subject}: unknown field; {closest(steps[-1], _siblings(steps[:-1], kind))}"
    if error["type"] == "missing":
        return message(subject, "be given", "nothing")
    must = error["msg"].removeprefix("Input should be ")
    if key:
        return message(subject, "be named by a scale number", repr(steps[-2]))
    if error["type"] == "too_long" or must == error["msg"]:
        return message(subject, f"be readable ({error['msg']})", _show(error["input"]))
    return message(subject, f"be {must}", _show(error["input"]))


def _siblings(steps: list[str], kind: type[PlanFields]) -> list[str]:
    """Valid field names of the object at a path."""
    if not steps:
        return [name for field in kind.model_fields for name in ((field, "digest") if field == "name" else (field,))]
    record: Any = kind
    for step in steps:
        if step in record.model_fields:  # else the number of a scale or of an entry
            record = _record_in(record.model_fields[step].annotation)
    return list(record.model_fields)


def _record_in(annotation: Any) -> Any:
    """The record that an annotation holds: itself, or one in a table, in a list or beside None; else None."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for each in get_args(annotation) if (found := _record_in(each)) is not None), None)


def _json_name(value: Any) -> str:
    names = {list: "list", str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
