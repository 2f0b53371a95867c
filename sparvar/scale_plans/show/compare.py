"""What changed between two plans, in lines a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from sparvar.scale_plans.check.plan_fields import printable, ranges
from sparvar.scale_plans.data import OPTIONAL_FIELDS, CS4AScale, CSLAScale, PlanFields

Entry = TypeVar("Entry", CS4AScale, CSLAScale)


@dataclass(frozen=True)
class PlanDiff:
    """Differences between two plans, one line each. False, and the empty text, when they are equal."""

    lines: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def diff(a: PlanFields, b: PlanFields) -> PlanDiff:
    """Differences from plan ``a`` to plan ``b``: every field, those outside the digest too.

    Layers are numbered from 0 and joined to runs; scales are shown with their grid in ``b``, or in ``a`` where ``b``
    has no such scale.
    """
    return PlanDiff(tuple(_lines(a, b)))


def _lines(a: PlanFields, b: PlanFields) -> Iterator[str]:
    for name in type(a).model_fields:
        before, after = getattr(a, name), getattr(b, name)
        if before == after:
            continue
        if name == "schedule":
            yield from _schedule(a, b)
        elif name == "layers":
            yield from _layers(a.layers, b.layers)
        elif name == "cs4a":
            yield from _scales(name, a, b, a.cs4a, b.cs4a, _cs4a_text, _cs4a_changes)
        elif name == "csla":
            yield from _scales(name, a, b, a.csla, b.csla, _csla_text, _csla_changes)
        elif name in OPTIONAL_FIELDS:
            yield from _records(name, before, after)
        elif isinstance(before, BaseModel):
            for field in type(before).model_fields:
                old, new = getattr(before, field), getattr(after, field)
                if field == "scores" and len(old) == len(new):
                    yield from _per_layer(f"{name}.scores, ", old, new)
                else:
                    yield from _values(f"{name}.{field}", old, new)
        else:
            yield from _values(name, before, after)


def _records(name: str, before: BaseModel | None, after: BaseModel | None) -> Iterator[str]:
    """Of records that a plan may lack; all fields are shown of one that is new."""
    old, new = (None if each is None else each.model_dump(mode="json") for each in (before, after))
    if old is None:
        yield f"{name}: added {_show(new)}"
    elif new is None:
        yield f"{name}: removed {_show(old)}"
    else:
        yield from _values(name, old, new)


def _values(name: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({**before, **after}):
            yield from _values(f"{name}.{printable(key)}", before.get(key, _ABSENT), after.get(key, _ABSENT))
    elif before != after:
        yield f"{name}: {_show(before)} -> {_show(after)}"


_ABSENT = object()


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        return "[" + ", ".join(map(_show, value)) + "]"
    return json.dumps(value)


def _schedule(a: PlanFields, b: PlanFields) -> Iterator[str]:
    if a.scales != b.scales:
        yield f"schedule: {a.scales} scales -> {b.scales} scales"
    for scale in range(1, max(a.scales, b.scales) + 1):
        before, after = _grid(a, scale), _grid(b, scale)
        if before != after:
            yield f"schedule, scale {scale}: {before} -> {after}"


def _grid(plan: PlanFields, scale: int) -> str:
    return "x".join(map(str, plan.schedule[scale - 1])) if scale <= plan.scales else "absent"


def _layers(before: tuple[str, ...], after: tuple[str, ...]) -> Iterator[str]:
    if len(before) != len(after):
        yield f"layers: {len(before)} layers -> {len(after)} layers"
    yield from _per_layer("", before, after)


def _per_layer(prefix: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[str]:
    """Changes per layer, those that are equal in one line."""
    changes: dict[tuple[Any, Any], list[int]] = {}
    for layer in range(max(len(before), len(after))):
        old, new = (values[layer] if layer < len(values) else "absent" for values in (before, after))
        if old != new:
            changes.setdefault((old, new), []).append(layer)
    for (old, new), layers in changes.items():
        yield f"{prefix}{'layers' if len(layers) > 1 else 'layer'} {ranges(layers)}: {old} -> {new}"


def _scales(
    name: str,
    a: PlanFields,
    b: PlanFields,
    before: Mapping[int, Entry],
    after: Mapping[int, Entry],
    text: Callable[[Entry], str],
    changes: Callable[[Entry, Entry, Callable[[int], str]], list[str]],
) -> Iterator[str]:
    def label(scale: int) -> str:
        return (b if scale <= b.scales else a).label(scale)

    for scale in sorted({*before, *after}):
        old, new = before.get(scale), after.get(scale)
        if old == new:
            continue
        if old is None and new is not None:
            yield f"{name}, {label(scale)}: added ({text(new)})"
        elif old is not None and new is None:
            yield f"{name}, {label(scale)}: removed ({text(old)})"
        elif old is not None and new is not None:
            yield f"{name}, {label(scale)}: {'; '.join(changes(old, new, label))}"


def _cs4a_text(entry: CS4AScale) -> str:
    return f"budget {entry.budget:g}, window {entry.window or 'none'}"


def _cs4a_changes(old: CS4AScale, new: CS4AScale, _: Callable[[int], str]) -> list[str]:
    parts = [f"budget {_show(old.budget)} -> {_show(new.budget)}"] if old.budget != new.budget else []
    if old.window != new.window:
        parts.append(f"window {old.window or 'none'} -> {new.window or 'none'}")
    return parts


def _csla_text(entry: CSLAScale) -> str:
    return ", ".join(f"window {side} at scale {scale}" for scale, side in entry.windows.items()) or "sinks only"


def _csla_changes(old: CSLAScale, new: CSLAScale, label: Callable[[int], str]) -> list[str]:
    return [
        f"window at {label(scale)} {old.windows.get(scale, 'none')} -> {new.windows.get(scale, 'none')}"
        for scale in sorted({*old.windows, *new.windows})
        if old.windows.get(scale) != new.windows.get(scale)
    ]
