"""Arguments of the models' own generation methods and blocks: their names, and what they say of a generation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError, SessionError, message
from sparvar.scale_plans import Schedule

GENERATION_METHODS = ("autoregressive_infer_cfg", "generate")
"""Methods of published models that run a whole generation."""
SCHEDULE_ARGUMENTS = ("scale_schedule", "infer_patch_nums", "patch_nums")
"""Arguments that name a schedule: Infinity's, FlexVAR's, and VAR's attribute where code passes it on."""
SCALE_ARGUMENT = "scale_ind"
"""Infinity's 0-based index of the scale."""
SUBSET_ARGUMENTS = ("m_maskgit",)
"""Arguments that give the positions of the tokens in a call, which then need not be the whole grid (HART)."""


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


def check_arguments(
    family: str, arguments: Mapping[str, Any], mapped: Collection[str], fixed: Mapping[str, Any]
) -> None:
    """Every argument of a call must be mapped or ignored by the method itself, or have the value that is ``fixed``.

    Raises:
        OptionError: one has another value, or is not known.
    """
    remedy = "call it so, or take skip out of the plan"
    for name, value in arguments.items():
        if name in mapped:
            continue
        subject = f"{family} generation, argument {name}"
        if name not in fixed:
            must = f"be among {', '.join([*mapped, *fixed])}, which can be mapped to a generation of fewer scales"
            raise OptionError(message(subject, must, repr(value), remedy))
        if not (value is fixed[name] or _equal(value, fixed[name])):
            raise OptionError(message(subject, f"be {fixed[name]!r} in a generation of fewer scales", value, remedy))


def _equal(value: Any, fixed: Any) -> bool:
    return type(value) in (bool, int, float, str, list, tuple) and bool(value == fixed)


def number(value: Any) -> Tensor:
    """A family's number, float64 []."""
    return torch.tensor(float(value), dtype=torch.float64)


def generator_of(model: nn.Module, seed: int | None) -> torch.Generator:
    """The model's own generator ``rng`` with a seed, torch's own where there is none, as public models draw."""
    if seed is not None:
        own: Any = model.rng
        generator: torch.Generator = own.manual_seed(seed)
        return generator
    device = next(model.parameters()).device
    if device.type == "cuda":
        found: torch.Generator = torch.cuda.default_generators[device.index or 0]
        return found
    return torch.default_generator
