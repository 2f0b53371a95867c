"""What a model's own call says about its schedule, so that nothing is guessed from lengths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sparvar.errors import SessionError, message
from sparvar.scale_plans import Schedule

#: Arguments that name a schedule: Infinity's, FlexVAR's, and VAR's attribute where code passes it on.
SCHEDULE_ARGUMENTS = ("scale_schedule", "infer_patch_nums", "patch_nums")
SCALE_ARGUMENT = "scale_ind"
"""Infinity's 0-based index of the scale."""


def parameters_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function, or None where Python knows none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def bound_arguments(
    signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a call by name, defaults included; those alone that are given by name where it does not fit."""
    if signature is None:
        return dict(kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return dict(kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def declared_schedule(arguments: Mapping[str, Any]) -> Schedule | None:
    """The schedule that a call names, or None.

    Sides (p), grids (h, w) and volumes (1, h, w) are understood.

    Raises:
        SessionError: an entry is none of these; video schedules (t > 1) are not supported.
    """
    for name in SCHEDULE_ARGUMENTS:
        given = arguments.get(name)
        if given is not None and len(given) > 0:
            return tuple(_grid(name, entry) for entry in given)
    return None


def _grid(name: str, entry: Any) -> tuple[int, int]:
    parts = tuple(entry) if isinstance(entry, list | tuple) else (entry,)
    try:
        sizes = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) == 3 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) == 1:
        return (sizes[0], sizes[0])
    if len(sizes) == 2:
        return (sizes[0], sizes[1])
    raise SessionError(
        message(f"{name}", "hold sides, (h, w) or (1, h, w)", repr(entry), "schedules over time are not supported")
    )
