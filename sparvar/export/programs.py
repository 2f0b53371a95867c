"""A whole generation as programs and the steps that chain them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparvar.compiler.torch_compat import fake_mode
from sparvar.errors import CaptureError, PlanError, message
from sparvar.export.capture import BlockGraph, record
from sparvar.export.rewrite import BlockProgram, SiteMaker, block_program
from sparvar.export.sites import kind_of, local_constants, native_site
from sparvar.export.trace import Program, export_graph, trace, weight_names
from sparvar.kernels.common.torch_compat import flop_counter
from sparvar.models import Family
from sparvar.runtime.sites import Site
from sparvar.scale_plans import Plan

Say = Callable[[str], None]


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


@dataclass
class Recorded:
    """What one dense generation showed of the blocks."""

    sites: list[Site]
    graphs: dict[int, list[BlockGraph]]
    image: Tensor

    def of(self, scale: int) -> BlockGraph:
        """The one graph of a scale.

        Raises:
            CaptureError: layers differ in more than their weights.
        """
        graphs = self.graphs[scale]
        if len(graphs) != 1:
            layers = "; ".join(", ".join(map(str, graph.layers)) for graph in graphs)
            raise CaptureError(message(f"the blocks at scale {scale}", "share one graph", f"{len(graphs)}: {layers}"))
        return graphs[0]


def record_blocks(family: Family, plan: Plan, inputs: dict[str, Tensor]) -> Recorded:
    """Record the blocks in one dense generation of ``inputs`` with seed 0."""
    if tuple(map(tuple, plan.schedule)) != tuple(map(tuple, family.schedule)):
        raise PlanError(
            message("plan", f"be made for the schedule {family.schedule}", f"one for {plan.schedule}"), plan.name
        )
    model: nn.Module = family.model
    full = family.longest(inputs)
    with family.functional():
        sites, graphs, image = record(model, plan, list(family.block_values), lambda: family.generate(full, 0))
        if any(not torch.equal(full[name], inputs[name]) for name in inputs):
            image = family.generate(inputs, 0)  # a shorter prompt's packed rows would be sizes in the graphs
    return Recorded(sites, graphs, image)


def build(
    family: Family,
    plan: Plan,
    recorded: Recorded,
    inputs: dict[str, Tensor],
    site: SiteMaker = native_site,
    say: Say = lambda _: None,
) -> Generation:
    """Trace everything.

    Args:
        family: the model's.
        plan: what runs where.
        recorded: from `record_blocks` of the same plan's schedule.
        inputs: one tensor per input of the family.
        site: makes what stands for attention.
    """
    made = Generation(family, plan, image=recorded.image)
    made.constants.update(local_constants(plan))
    builder = Builder(made, recorded, weight_names(family), site)
    with torch.no_grad(), family.functional():
        state = builder.begin(inputs)
        for scale in family.scales:
            say(f"tracing scale {scale} of {family.scales[-1]}")
            builder.blocks(scale, state)
            builder.leave(scale, state)
        builder.decode(state)
    return made


class Builder:
    """Makes the programs of one generation."""

    def __init__(self, made: Generation, recorded: Recorded, names: dict[int, str], site: SiteMaker) -> None:
        self.made, self.recorded, self.names, self.site = made, recorded, names, site
        self.family, self.plan = made.family, made.plan
        self.prefixes = [f"{site.wrapped}." for site in recorded.sites]

    def add(self, name: str, scale: int, kind: str, function: object, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trace a function of named values into a program, and a step that calls it; returns what it gives."""
        exported, takes, gives, weights, out = trace(self.family, function, given)  # type: ignore[arg-type]
        self._store({self.weight_name(name): tensor for name, tensor in weights.items()})
        takes = [f"weights/{self.weight_name(each[8:])}" if each.startswith("weights/") else each for each in takes]
        program = Program(
            name, scale, kind, exported, takes, gives, flops=self._flops(exported, self._examples(exported))
        )
        program.dense_flops = program.flops
        self.made.programs[name] = program
        self.made.steps.append(Step(name, tuple(takes), tuple(gives)))
        return out

    @staticmethod
    def _examples(exported: ExportedProgram) -> list[Tensor]:
        assert exported.example_inputs is not None
        return list(exported.example_inputs[0])

    def _flops(self, module: nn.Module | ExportedProgram, examples: list[Tensor]) -> int:
        return flops_of(module, examples, self.family.device)

    def _store(self, weights: dict[str, Tensor]) -> None:
        self.made.weights.update(weights)

    def weight_name(self, name: str) -> str:
        """The name in the artefact: a block's weights are called by the layer, whatever the model calls its blocks."""
        for layer, prefix in enumerate(self.prefixes):
            if name.startswith(prefix):
                return f"layers.{layer}.{name.removeprefix(prefix)}"
        return name

    def begin(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {f"inputs/{name}": tensor for name, tensor in inputs.items()}

        def begin(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.family.begin({name.removeprefix("inputs/"): tensor for name, tensor in tensors.items()})

        return self.add("begin", 0, "begin", begin, given)

    def leave(self, scale: int, state: dict[str, Tensor]) -> None:
        shapes = [noise for noise in self.family.noise if noise.scale == scale]
        device = self.family.device
        noises = {
            each.name: torch.full(each.shape, 0.5, dtype=getattr(torch, each.dtype), device=device) for each in shapes
        }

        def leave(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            noise = {name: tensor for name, tensor in tensors.items() if name in noises}
            rest = {name: tensor for name, tensor in tensors.items() if name not in noises}
            return self.family.leave(scale, rest, noise)

        state.update(self.add(f"scale{scale:02d}-leave", scale, "leave", leave, {**state, **noises}))

    def decode(self, state: dict[str, Tensor]) -> None:
        state = {name: tensor for name, tensor in state.items() if name != "x"}
        self.add("decode", 0, "decode", lambda tensors: {"image": self.family.decode(tensors)}, state)

    def blocks(self, scale: int, state: dict[str, Tensor]) -> None:
        graph = self.recorded.of(scale)
        kinds = [kind_of(self.plan, scale, layer) for layer in range(len(self.plan.layers))]
        inputs = self.inputs_of(graph, scale)
        dense = block_program(graph, "dense", self.plan, inputs)
        dense_flops = self._flops(dense.module, dense.examples)
        for kind, run in groupby(range(len(kinds)), key=kinds.__getitem__):
            name = f"scale{scale:02d}-{kind}"
            if name not in self.made.programs:
                block = dense if kind == "dense" else block_program(graph, kind, self.plan, inputs, self.site)
                self._add_block(name, block, dense_flops)
            self._chain(self.made.programs[name], list(run), scale, state)

    def _chain(self, program: Program, layers: list[int], scale: int, state: dict[str, Tensor]) -> None:
        """Steps of consecutive layers, cut where the model changes x between two blocks."""

        def step(part: list[int]) -> None:
            if part:
                self.made.steps.append(Step(program.name, tuple(program.inputs), tuple(program.outputs), tuple(part)))

        waiting: list[int] = []
        for layer in layers:
            waiting.append(layer)
            if self.family.between(layer, state["x"], state, scale) is not None:
                step(waiting)
                waiting = []
                self._between(layer, scale, state)
        step(waiting)

    def _between(self, layer: int, scale: int, state: dict[str, Tensor]) -> None:
        def between(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            changed = self.family.between(layer, tensors["x"], tensors, scale)
            assert changed is not None
            return {"x": changed}

        self.add(f"scale{scale:02d}-after{layer:02d}", scale, "between", between, state)

    def _add_block(self, name: str, block: BlockProgram, dense_flops: int) -> None:
        device = self.family.device
        examples = [torch.empty_strided(e.shape, e.stride(), dtype=e.dtype, device=device) for e in block.examples]
        program = Program(
            name, block.scale, block.kind, export_graph(block.module, examples), block.inputs, block.outputs
        )
        program.dense_flops = dense_flops
        program.flops = dense_flops - round(self.attention(block) * (1 - self.kept(block)))
        self.made.programs[name] = program
        for layer in range(len(self.plan.layers)):
            for each, tensor in block.buffers.items():
                self.made.buffers[each.format(layer=layer)] = tensor

    def attention(self, block: BlockProgram) -> int:
        """Multiplications and additions of dense attention in a block."""
        model, scale = self.plan.model, max(1, block.scale)
        rows = next(iter(block.examples)).shape[0]
        return 4 * rows * model.heads * self.plan.tokens(scale) * self.plan.keys(scale) * model.head_dim

    def kept(self, block: BlockProgram) -> float:
        """Share of attention that a block computes."""
        share = self.plan.kept_share(block.scale, block.kind) if block.kind in ("cs4a", "csla") else None
        return 1.0 if share is None else share

    def inputs_of(self, graph: BlockGraph, scale: int) -> list[str]:
        """The value name of every placeholder of a block's graph; "" for caches."""
        return [self._input(graph, scale, number, source) for number, source in enumerate(graph.sources)]

    def _input(self, graph: BlockGraph, scale: int, number: int, source: str) -> str:
        if source in self.family.block_values:
            return self.family.block_values[source]
        if re.search(r"\bcached_[kv]\b", source):
            return ""
        tensors = {layer: graph.arguments[layer][number] for layer in graph.layers}
        if number in graph.weights[graph.layers[0]]:
            return self._weight_input(graph, number, tensors)
        plain = re.sub(r"\W+", "_", source.removeprefix("L[")).strip("_")
        first = tensors[graph.layers[0]]
        if all(tensor is first or _same(tensor, first) for tensor in tensors.values()):
            self.made.constants[f"{plain}.{scale}"] = first
            return f"constants/{plain}.{scale}"
        for layer, tensor in tensors.items():
            self.made.constants[f"{plain}.{scale}.{layer}"] = tensor
        return f"constants/{plain}.{scale}.{{layer}}"

    def _weight_input(self, graph: BlockGraph, number: int, tensors: dict[int, Tensor]) -> str:
        named = {layer: self.weight_name(graph.weights[layer][number]) for layer in graph.layers}
        self._store({named[layer]: tensor for layer, tensor in tensors.items()})
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


def flops_of(module: nn.Module | ExportedProgram, examples: list[Tensor], device: torch.device | str = "cpu") -> int:
    """Multiplications and additions of the matrix products, convolutions and attention of a graph."""
    graph = module.module() if isinstance(module, ExportedProgram) else module
    counter = flop_counter()
    with torch.no_grad(), fake_mode(), counter:
        graph(*(torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=device) for each in examples))
    return counter.get_total_flops()
