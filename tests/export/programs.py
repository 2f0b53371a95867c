"""The functions of a family as modules that ``torch.export`` takes, and what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparvar.models import Family, State


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

    states: list[State] = []

    def keep(state: State) -> None:
        assert all(value.is_contiguous() for value in state.values())
        states.append(dict(state))

    drawn: dict[str, Tensor] = family.draw(seed)
    with torch.no_grad():
        family.caching(True)
        try:
            state = dict(call(family.begin, inputs))
            keep(state)
            for scale in family.scales:
                x = state.pop("x")
                for layer in range(family.layers):
                    x = family.call_block(layer, x, state, scale)
                    changed = family.between(layer, x, state, scale)
                    x = x if changed is None else changed

                def leave(given: State, noise: State, scale: int = scale) -> State:
                    return family.leave(scale, given, noise)

                state.update(call(leave, {**state, "x": x}, family.noise_of(scale, drawn)))
                keep(state)
        finally:
            family.caching(False)
        return call(family.decode, state), states


def block_sources(family: Family, inputs: State, scales: Sequence[int]) -> set[str]:
    """Sources, as Dynamo writes them, of the tensors that the first block takes at ``scales``, without its own."""
    found: set[str] = set()

    def record(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        found.update(node._dynamo_source.name for node in graph.graph.find_nodes(op="placeholder"))
        return graph.forward

    block = family.block(0)
    with torch.no_grad(), family.functional():
        state = family.begin(inputs)
        compiled = torch.compile(type(block).forward, backend=record, fullgraph=True, dynamic=False)
        block.forward = functools.partial(compiled, block)
        family.caching(True)
        try:
            for scale in scales:
                tokens = family.schedule[scale - 1][0] * family.schedule[scale - 1][1] if scale else family.prefix
                x = state["x"][:, :1].expand(-1, tokens, -1).contiguous()
                family.call_block(0, x, state, scale)
        finally:
            family.caching(False)
            del block.forward
            torch.compiler.reset()
    return {source for source in found if not source.startswith("L['self']")}


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
