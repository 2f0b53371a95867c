"""The host loop: run the steps of an artefact on named values. It chains programs and knows nothing of models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Run = Callable[[list[Any]], Sequence[Any]]
"""A loaded program: tensors in the order of its inputs to tensors in the order of its outputs."""
Timer = Callable[[str, float], None]
"""Told the program's name and its seconds after each call."""


@dataclass(frozen=True)
class Call:
    """One call of a program, on slots of a table of values.

    Attributes:
        program: its name.
        inputs, outputs: slots.
        last: slots whose values nothing reads afterwards.
    """

    program: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    last: tuple[int, ...]


class Chain:
    """All calls of one generation, with their values resolved to slots once, when the artefact is loaded.

    Args:
        steps: (program, inputs, outputs, layers) of the manifest, in order.
        kept: prefixes of value names that outlive a generation, such as ``weights/``.
    """

    def __init__(self, steps: Sequence[Any], kept: tuple[str, ...]) -> None:
        self.slots: dict[str, int] = {}
        expanded = [
            (
                step.program,
                *(
                    tuple(name.replace("{layer}", str(layer)) for name in names)
                    for names in (step.inputs, step.outputs)
                ),
            )
            for step in steps
            for layer in (step.layers if step.layers is not None else (None,))
        ]
        final: dict[str, int] = {}
        for number, (_, inputs, outputs) in enumerate(expanded):
            final.update(dict.fromkeys((*inputs, *outputs), number))
        final.pop("image", None)
        dropped: dict[int, list[str]] = {}
        for name, number in final.items():
            if not name.startswith(kept):
                dropped.setdefault(number, []).append(name)
        self.calls = [
            Call(
                program,
                tuple(self._slot(name) for name in inputs),
                tuple(self._slot(name) for name in outputs),
                tuple(self._slot(name) for name in dropped.get(number, ())),
            )
            for number, (program, inputs, outputs) in enumerate(expanded)
        ]

    def _slot(self, name: str) -> int:
        return self.slots.setdefault(name, len(self.slots))

    @property
    def names(self) -> list[str]:
        """Value names in the order of their slots."""
        return list(self.slots)

    def table(self, values: Mapping[str, Any]) -> list[Any]:
        """A table with ``values`` in their slots; what no program reads is left out."""
        table: list[Any] = [None] * len(self.slots)
        for name, value in values.items():
            if name in self.slots:
                table[self.slots[name]] = value
        return table

    def run(
        self,
        programs: Mapping[str, Run],
        table: list[Any],
        noise: Callable[[str], Any],
        timer: Timer | None = None,
    ) -> Any:
        """Run every call and return the image.

        ``table`` is used up. ``noise`` draws a value that is not in the table, at the first step that reads it.
        """
        self.run_calls(self.calls, programs, table, noise, timer)
        return table[self.slots["image"]]

    def run_calls(
        self,
        calls: Sequence[Call],
        programs: Mapping[str, Run],
        table: list[Any],
        noise: Callable[[str], Any],
        timer: Timer | None = None,
    ) -> None:
        """Run some calls: read their inputs from ``table``, put their outputs there, drop what nothing reads later."""
        names = self.names
        for call in calls:
            for slot in call.inputs:
                if table[slot] is None:
                    table[slot] = noise(names[slot])
            started = time.perf_counter()
            outputs = programs[call.program]([table[slot] for slot in call.inputs])
            for slot, value in zip(call.outputs, outputs, strict=True):
                table[slot] = value
            if timer is not None:
                timer(call.program, time.perf_counter() - started)
            del outputs
            for slot in call.last:
                table[slot] = None
