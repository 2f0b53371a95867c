"""What is calibrated: a model, how to draw one image with it, and its schedule."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError, message
from sparvar.scale_plans import Schedule

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
        resize: ``resize(height, width)`` gives the subject that draws images of that size in pixels, on the same
            model; raises `OptionError` for a size that it cannot draw. None where there is one size only.
        reschedule: the same for a schedule.
    """

    model: nn.Module
    draw: Callable[[Any, Any, int], Tensor]
    schedule: tuple[tuple[int, int], ...]
    heads: int
    head_dim: int
    prefix: int = 0
    tile: tuple[int, int] = (8, 16)
    name: str = "calibrated"
    resize: Callable[[int, int], Subject] | None = None
    reschedule: Callable[[Schedule], Subject] | None = None

    def digest(self) -> str:
        """SHA-256 of the model's weights and buffers, with their names."""
        found = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def _draw(model: Any, prompt: Any, seed: int, **schedule: Schedule) -> Tensor:
    image: Tensor = model.generate(labels=[prompt], seed=seed, cfg=CFG, **schedule)[0]
    return image


def scaled_schedule(schedule: Schedule, grid: tuple[int, int]) -> Schedule:
    """A schedule whose last grid is ``grid``: every grid scaled per axis by the same ratio, rounded, at least 1.

    Sides never shrink from scale to scale where those of ``schedule`` do not.
    """
    last = schedule[-1]

    def side(length: int, axis: int) -> int:
        return max(1, (2 * length * grid[axis] + last[axis]) // (2 * last[axis]))

    return tuple((side(height, 0), side(width, 1)) for height, width in schedule)


def _tile(schedule: Schedule) -> tuple[int, int]:
    longest = max(schedule[-1])
    return (8, 16) if longest >= 16 else (max(1, longest // 4), max(1, longest // 2))


def _resizable(subject: Subject, patch: int) -> Subject:
    """The subject with `Subject.resize` and `Subject.reschedule`, for models that take ``scale_schedule``."""

    def reschedule(schedule: Schedule) -> Subject:
        check = getattr(subject.model, "check_schedule", None)
        try:
            if callable(check):
                check(schedule)
        except ValueError as error:
            raise OptionError(f"model {subject.name}: {error}") from error
        draw = partial(_draw, scale_schedule=schedule)
        return replace(subject, draw=draw, schedule=schedule, tile=_tile(schedule), **both)

    def resize(height: int, width: int) -> Subject:
        schedule = scaled_schedule(subject.schedule, (height // patch, width // patch))
        if height % patch or width % patch or not _refines(schedule):
            own = subject.schedule
            sides = range(1, max(own[-1]))
            least = next((side for side in sides if _refines(scaled_schedule(own, (side, side)))), max(own[-1]))
            must = f"have sides that are multiples of {patch}, at least {least * patch}, for model {subject.name}"
            remedy = f"it was made for {own[-1][0] * patch}x{own[-1][1] * patch}"
            raise OptionError(message("--size", must, f"{height}x{width}", remedy))
        return reschedule(schedule)

    both: dict[str, Any] = {"resize": resize, "reschedule": reschedule}
    return replace(subject, **both)


def _refines(schedule: Schedule) -> bool:
    """Whether the last scale has more rows and columns than the one before; else there is nothing left to refine."""
    before = schedule[-2] if len(schedule) > 1 else (0, 0)
    return schedule[-1][0] > before[0] and schedule[-1][1] > before[1]


def as_subject(given: Any, name: str) -> Subject:
    """A `Subject` from what a factory returned: one itself, or a model with the habits of the shipped one.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(given, Subject):
        return given
    sides: Any = getattr(given, "sides", None)
    heads: Any = getattr(given, "heads", None)
    generate: Any = getattr(given, "generate", None)
    if not isinstance(given, nn.Module) or not sides or not heads or not callable(generate):
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
    subject = Subject(
        given, _draw, schedule, int(heads), width // int(heads), tile=_tile(schedule), name=name.rpartition(":")[2]
    )
    patch = getattr(given, "patch", None)
    if isinstance(patch, int) and "scale_schedule" in inspect.signature(generate).parameters:
        return _resizable(subject, patch)
    return subject
