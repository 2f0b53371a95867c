"""Arguments of the models' own generation methods, as settings and inputs of their families."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError, message


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


def class_labels(model: Any, images: int, given: Any, generator: torch.Generator) -> Tensor:
    """``label_B`` of VAR and FlexVAR as indices [images]: a tensor, one class for all, or None for random ones."""
    device = model.lvl_1L.device if hasattr(model, "lvl_1L") else next(model.parameters()).device
    if given is None:
        drawn: Tensor = torch.multinomial(model.uniform_prob, num_samples=images, replacement=True, generator=generator)
        return drawn.reshape(images)
    if isinstance(given, int):
        return torch.full((images,), model.num_classes if given < 0 else given, device=device)
    labels: Tensor = given
    return labels
