"""Tracing a generation: the parts of the loop over scales as programs, and the steps that chain them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparvar.compiler.torch_compat import fake_mode
from sparvar.errors import CaptureError, message
from sparvar.export.capture import BlockGraph, Recorded
from sparvar.export.rewrite import BlockProgram, SiteMaker
from sparvar.export.sites import kind_of, local_constants
from sparvar.export.trace import Program, trace
from sparvar.kernels.common.torch_compat import flop_counter
from sparvar.models import Family, State
from sparvar.progress import Progress
from sparvar.runtime.generation_loop import run_scales
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Step:
    """One program on named values; with ``layers``, once per layer with ``{layer}`` replaced."""

    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[int, ...] | None = None


@dataclass
class Generation:
    """Programs, steps, and the tensors they name.

    Attributes:
        weights, constants: by name without ``weights/`` and ``constants/``.
        buffers: shapes of the keys' and values' buffers, by name.
        image: the model's own image of the example inputs, made while the blocks were recorded.
    """

    family: Family
    plan: Plan
    programs: dict[str, Program] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    image: Tensor | None = None


class Tracer(ABC):
    """Traces one generation: `sparvar.runtime.generation_loop.Stages` that add programs to ``made``.

    Args:
        recorded: the blocks, the plan that says what runs where, and examples of the inputs.
        site: makes what stands for attention.
        progress: told of every scale.
    """

    def __init__(self, recorded: Recorded, site: SiteMaker, progress: Progress) -> None:
        self.recorded, self.site, self.progress = recorded, site, progress
        self.family, self.plan = recorded.family, recorded.plan
        self.made = Generation(self.family, self.plan, image=recorded.image)
        self.made.constants.update(local_constants(self.plan))
        self.prefixes = [f"{site.wrapped}." for site in recorded.sites]
        self.kinds = {
            scale: [kind_of(self.plan, scale, layer) for layer in range(self.family.layers)]
            for scale in self.family.scales
        }

    def traced(self) -> Generation:
        """Run the loop over the scales on this tracer, which makes every program."""
        with torch.no_grad(), self.family.functional():
            self.decode(run_scales(self))
        return self.made

    def begin(self) -> State:
        """A program of the state before the first scale."""
        inputs = self.recorded.inputs

        def begin(values: State) -> State:
            return self.family.begin({name: values[f"inputs/{name}"] for name in inputs})

        return self.add("begin", 0, "begin", begin, {f"inputs/{name}": tensor for name, tensor in inputs.items()})

    def scale(self, scale: int, state: State) -> State:
        """Programs of a scale."""
        self.progress.step(f"tracing scale {scale} of {self.family.scales[-1]}")
        return self.trace_scale(scale, state)

    @abstractmethod
    def trace_scale(self, scale: int, state: State) -> State:
        """Programs of a scale's blocks and of what follows them."""

    def decode(self, state: State) -> None:
        """A program of the image."""
        state = {name: tensor for name, tensor in state.items() if name != "x"}
        self.add("decode", 0, "decode", lambda values: {"image": self.family.decode(values)}, state)

    def add(self, name: str, scale: int, kind: str, function: Callable[[State], State], given: State) -> State:
        """Trace a function of named values into a program, and a step that calls it; returns what it gives."""
        found = trace(self.family, function, given)
        self.made.weights.update({self.weight_name(each): tensor for each, tensor in found.weights.items()})
        inputs = [*found.inputs, *(f"weights/{self.weight_name(each)}" for each in found.weights)]
        assert found.exported.example_inputs is not None
        flops = flops_of(found.exported, list(found.exported.example_inputs[0]), self.family.device)
        self._add(Program(name, scale, kind, found.exported, inputs, list(found.outputs), flops, flops))
        return found.outputs

    def _add(self, program: Program) -> None:
        self.made.programs[program.name] = program
        self.made.steps.append(Step(program.name, tuple(program.inputs), tuple(program.outputs)))

    def noise_examples(self, scale: int) -> State:
        """A tensor for each that a scale draws at random."""
        device = self.family.device
        return {
            each.name: torch.full(each.shape, 0.5, dtype=getattr(torch, each.dtype), device=device)
            for each in self.family.noise_of(scale)
        }

    def weight_name(self, name: str) -> str:
        """The name in the artefact: a block's weights are called by the layer, whatever the model calls its blocks."""
        for layer, prefix in enumerate(self.prefixes):
            if name.startswith(prefix):
                return f"layers.{layer}.{name.removeprefix(prefix)}"
        return name

    def attention_flops(self, block: BlockProgram) -> int:
        """Multiplications and additions of dense attention in a block."""
        model, scale = self.plan.model, max(1, block.scale)
        rows = next(iter(block.examples)).shape[0]
        return 4 * rows * model.heads * self.plan.tokens(scale) * self.plan.keys(scale) * model.head_dim

    def block_flops(self, block: BlockProgram, dense_flops: int) -> int:
        """Of a block, from those of the dense one."""
        share = self.plan.kept_share(block.scale, block.kind) if block.kind in ("cs4a", "csla") else None
        return dense_flops - round(self.attention_flops(block) * (1 - (1.0 if share is None else share)))

    def inputs_of(self, graph: BlockGraph) -> list[str]:
        """The value name of every placeholder of a block's graph; "" for caches."""
        return [self._input(graph, number, source) for number, source in enumerate(graph.sources)]

    def _input(self, graph: BlockGraph, number: int, source: str) -> str:
        if source in self.family.block_values:
            return self.family.block_values[source]
        if re.search(r"\bcached_[kv]\b", source):
            return ""
        tensors = {layer: graph.arguments[layer][number] for layer in graph.layers}
        if number in graph.weights[graph.layers[0]]:
            return self._weight_input(graph, number, tensors)
        plain = re.sub(r"\W+", "_", source.removeprefix("L[")).strip("_")
        name, first = f"{plain}.{graph.context.scale}", tensors[graph.layers[0]]
        if all(tensor is first or _same(tensor, first) for tensor in tensors.values()):
            self.made.constants[name] = first
            return f"constants/{name}"
        for layer, tensor in tensors.items():
            self.made.constants[f"{name}.{layer}"] = tensor
        return f"constants/{name}.{{layer}}"

    def _weight_input(self, graph: BlockGraph, number: int, tensors: dict[int, Tensor]) -> str:
        named = {layer: self.weight_name(graph.weights[layer][number]) for layer in graph.layers}
        self.made.weights.update({named[layer]: tensor for layer, tensor in tensors.items()})
        if len(set(named.values())) == 1:
            return f"weights/{named[graph.layers[0]]}"
        rest = {name.removeprefix(f"layers.{layer}.") for layer, name in named.items()}
        if len(rest) != 1 or next(iter(rest)) in named.values():
            raise CaptureError(
                message(
                    f"weight {graph.sources[number]} at scale {graph.context.scale}",
                    "be one of the block's own, of the same name in every layer, or shared by all",
                    ", ".join(sorted(set(named.values()))[:4]),
                )
            )
        return f"weights/layers.{{layer}}.{rest.pop()}"


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def flops_of(module: nn.Module | ExportedProgram, examples: list[Tensor], device: torch.device) -> int:
    """Multiplications and additions of the matrix products, convolutions and attention of a graph."""
    graph = module.module() if isinstance(module, ExportedProgram) else module
    counter = flop_counter()
    with torch.no_grad(), fake_mode(), counter:
        graph(*(empty_like(each, device) for each in examples))
    return counter.get_total_flops()


def empty_like(example: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, of an example's sizes, strides and dtype."""
    return torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=device)
