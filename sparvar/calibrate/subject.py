"""What is calibrated: a model, how to draw one image with it, and its schedule."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError, message
from sparvar.passes import find_candidates, fingerprint
from sparvar.scale_plans import Plan, dense_plan

CFG = 2.0
"""Guidance of a model that is given without its own ``draw``, as `sparvar demo` uses."""


@dataclass(frozen=True)
class Subject:
    """A model and what calibration must know to run it.

    Attributes:
        model: unmodified and unattached.
        draw: ``draw(model, prompt, seed)`` generates one image in [0, 1], any shape, the same for the same arguments.
        schedule: (h, w) of every scale.
        heads: query heads of every site.
        head_dim: D.
        prefix: tokens in the KV cache before scale 1.
        tile: (h, w) of a query tile.
        name: of the plans made.
    """

    model: nn.Module
    draw: Callable[[Any, Any, int], Tensor]
    schedule: tuple[tuple[int, int], ...]
    heads: int
    head_dim: int
    prefix: int = 0
    tile: tuple[int, int] = (8, 16)
    name: str = "calibrated"

    def base_plan(self) -> Plan:
        """The all-dense plan that every candidate is a change of. Raises `OptionError` where no module attends."""
        names = [candidate.name for candidate in find_candidates(self.model) if candidate.problem is None]
        if not names:
            must = "hold modules whose forward calls attention"
            raise OptionError(message(f"model {type(self.model).__name__}", must, "none among its modules"))
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return dense_plan(
            self.schedule,
            names,
            heads=self.heads,
            head_dim=self.head_dim,
            dtype=dtype,
            family=self.name,
            fingerprint=fingerprint(self.model),
            prefix=self.prefix,
            tile=self.tile,
            name=self.name,
        )


def _draw(model: Any, prompt: Any, seed: int) -> Tensor:
    image: Tensor = model.generate(labels=[prompt], seed=seed, cfg=CFG)[0]
    return image


def as_subject(given: Any, name: str) -> Subject:
    """A `Subject` from what a factory returned: one itself, or a model with the habits of the shipped one.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(given, Subject):
        return given
    sides: Any = getattr(given, "sides", None)
    heads: Any = getattr(given, "heads", None)
    if not isinstance(given, nn.Module) or not sides or not heads or not callable(getattr(given, "generate", None)):
        raise OptionError(
            message(
                f"model {name}",
                "be a sparvar.calibrate Subject, or a module with sides, heads and generate(labels, seed, cfg)",
                type(given).__name__,
                "return Subject(model, draw, schedule, heads, head_dim) from the factory",
            )
        )
    start = getattr(given, "start", None)
    width = int(start.shape[-1]) if isinstance(start, Tensor) else None
    if width is None:
        raise OptionError(message(f"model {name}", "tell its width by a parameter `start` [1, 1, C]", "none"))
    schedule = tuple((int(side), int(side)) for side in sides)
    longest = max(schedule[-1])
    tile = (8, 16) if longest >= 16 else (max(1, longest // 4), max(1, longest // 2))
    return Subject(given, _draw, schedule, int(heads), width // int(heads), tile=tile, name=name.rpartition(":")[2])


def load_subject(text: str) -> Subject:
    """The subject that ``zoo:landscape`` or ``package.module:factory`` names; the factory is called without arguments.

    Raises:
        OptionError: there is no such module or factory, or it returned something else.
    """
    place, _, attribute = text.partition(":")
    must = "be zoo:landscape or package.module:factory"
    if not place or not attribute:
        raise OptionError(message("MODEL", must, repr(text)))
    try:
        module = importlib.import_module("sparvar.zoo" if place == "zoo" else place)
    except ImportError as error:
        raise OptionError(message("MODEL", must, repr(text), f"importing {place} failed: {error}")) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise OptionError(message("MODEL", must, repr(text), f"{place} has no callable named {attribute}"))
    with torch.random.fork_rng(devices=[]):
        return as_subject(factory(), text)
