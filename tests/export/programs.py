"""The functions of a family as modules that ``torch.export`` takes, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.export.families import Family, State


class Program(nn.Module):
    """A function of dicts of tensors; parameters are those of the family's roots."""

    def __init__(self, family: Family, function: Callable[..., object]) -> None:
        super().__init__()
        self.roots = nn.ModuleDict(family.roots)
        self.function = function

    def forward(self, *args: object) -> object:
        return self.function(*args)


def exported(family: Family, function: Callable[..., object], *args: object) -> Callable[..., object]:
    """The function by way of ``torch.export``, without gradients, with static shapes."""
    with torch.no_grad():
        return torch.export.export(Program(family, function), args, strict=False).module()


def chain(family: Family, inputs: State, seed: int, through_export: bool = False) -> tuple[Tensor, list[State]]:
    """The image, and the states after ``begin`` and every ``leave``, as the programs compute them."""

    def call(function: Callable[..., object], *args: object) -> Any:
        return (exported(family, function, *args) if through_export else function)(*args)

    drawn, states = family.draw(seed), []
    with torch.no_grad():
        family.caching(True)
        try:
            state = dict(call(family.begin, inputs))
            states.append(dict(state))
            for scale in family.scales:
                x = state.pop("x")
                for layer in range(family.layers):
                    x = family.call_block(layer, x, state, scale)
                    changed = family.between(layer, x, state, scale)
                    x = x if changed is None else changed

                def leave(given: State, noise: State, scale: int = scale) -> State:
                    return family.leave(scale, given, noise)

                state.update(call(leave, {**state, "x": x}, family.noise_of(scale, drawn)))
                states.append(dict(state))
        finally:
            family.caching(False)
        return call(family.decode, state), states


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
