"""The functions of a family as modules that ``torch.export`` takes, and what they compute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparvar.models import Call, Family, State
from sparvar.runtime.generation_loop import Eager, caching, run_scales


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


class Kept(Eager):
    """Stages that go through export where asked, and keep the states after ``begin`` and every ``leave``."""

    def __init__(self, call: Call, through_export: bool) -> None:
        super().__init__(call)
        self.through_export = through_export
        self.states: list[State] = []

    def compute(self, function: Callable[..., object], *args: object) -> Any:
        return (exported(self.family, function, *args) if self.through_export else function)(*args)

    def begin(self) -> State:
        return self.kept(dict(self.compute(self.family.begin, self.call.inputs)))

    def leave(self, scale: int, given: State, state: State) -> None:
        def leave(given: State, noise: State) -> State:
            return self.family.leave(scale, given, noise)

        noise = {each.name: self.call.draw(each) for each in self.family.noise_of(scale)}
        state.update(self.compute(leave, given, noise))
        self.kept(state)

    def kept(self, state: State) -> State:
        assert all(value.is_contiguous() for value in state.values())
        self.states.append(dict(state))
        return state


def chain(family: Family, inputs: State, seed: int, through_export: bool = False) -> tuple[Tensor, list[State]]:
    """The image, and the states after ``begin`` and every ``leave``, as the programs compute them."""
    drawn = family.draw(seed)
    stages = Kept(Call(family, inputs, lambda noise: drawn[noise.name]), through_export)
    with torch.no_grad():
        with caching(family):
            state = run_scales(stages)
        return stages.compute(family.decode, state), stages.states


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
