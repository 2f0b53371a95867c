"""Record the graphs of a model's blocks during one dense generation: one per scale, as Dynamo sees them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparvar.compiler.compiled_sites import copy_of, unwrap_error
from sparvar.compiler.select_sites import select_sites
from sparvar.compiler.torch_compat import dynamo_source
from sparvar.errors import CaptureError, PlanError, message
from sparvar.models import Family
from sparvar.passes import GraphContext
from sparvar.runtime.attaching import attach, detach
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.generation import Generation, current
from sparvar.runtime.sites import Site
from sparvar.scale_plans import Plan, PlanSet


@dataclass
class BlockGraph:
    """The graph of a block at one scale, as captured, and what its layers gave it.

    Attributes:
        context: scale and sizes; its kind is ``dense``.
        module: the captured graph; nothing of it has been rewritten.
        sources: Dynamo's name of every placeholder, e.g. ``L['x']``.
        result: which of the graph's outputs is what the block returns.
        arguments: per layer, the tensors it was called with, in the order of the placeholders. Activations and caches
            are kept as meta tensors.
        seen: per layer, the placeholders that are weights, by name in the model.
    """

    context: GraphContext
    module: fx.GraphModule
    sources: list[str]
    result: int = -1
    arguments: dict[int, list[Tensor]] = field(default_factory=dict)
    weights: dict[int, dict[int, str]] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        return sorted(self.arguments)


def _sources(module: fx.GraphModule) -> list[str]:
    names = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names.append(dynamo_source(node))
    return names


class Recorder:
    """Sites whose graphs an attachment runs dense, and each graph is kept before it runs.

    Args:
        sites: blocks of one class.
        weights: names of the model's parameters and buffers by ``id``.
        activations: sources of tensors that differ between generations; their values are not kept.
    """

    around: Sequence[Site] = ()

    def __init__(self, sites: Sequence[Site], weights: dict[int, str], activations: Sequence[str]) -> None:
        self.sites, self.names, self.activations = sites, weights, set(activations)
        self.reports: list[Any] = []
        self.graphs: dict[int, list[BlockGraph]] = {}
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._last: tuple[BlockGraph, Sequence[Any]] | None = None

    def graphs_of(self, plan: Plan) -> Recorder:
        """All graphs are recorded here."""
        return self

    def fall_back_to_attention(self) -> None:
        """Whole blocks are what is exported."""

    def unwrap_error(self, error: BaseException) -> BaseException:
        """The error of ours inside one that Dynamo raised, or that one."""
        return unwrap_error(error)

    def check_recompile_limit(self, variant: object) -> None:
        """Nothing here outlives one generation."""

    def compiled(self, kind: str, scale: int, lengths: tuple[int, int] | None = None) -> Callable[..., Any]:
        """The recording forward of a scale."""
        if scale not in self._compiled:
            made = torch.compile(
                copy_of(self.sites[0].forward), backend=functools.partial(self._backend), dynamic=False, fullgraph=True
            )
            self._compiled[scale] = functools.partial(self._call, made)
        return self._compiled[scale]

    def _call(self, made: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = made(*args, **kwargs)
        assert self._last is not None
        graph, outputs = self._last
        found = [number for number, each in enumerate(outputs) if each is out]
        if not found:
            raise CaptureError(
                message(
                    f"the block at scale {graph.context.scale}", "return one tensor that its graph computes", type(out)
                )
            )
        graph.result = found[0]
        return out

    def _backend(self, module: fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        site = current()
        generation = site.generation
        found = self.graphs.setdefault(site.scale, [])
        # Dynamo also guards what leaves no trace: a first layer without stochastic depth, which is off when drawing.
        graph = next((each for each in found if _equal(each, module)), None)
        if graph is None:
            graph = BlockGraph(_context(generation, site.scale), copy.deepcopy(module), _sources(module))
            found.append(graph)

        def run(*args: Any) -> Any:
            layer = current().layer
            graph.arguments[layer] = [self._kept(graph, number, arg) for number, arg in enumerate(args)]
            graph.weights[layer] = {
                number: self.names[id(arg)] for number, arg in enumerate(args) if id(arg) in self.names
            }
            outputs = module.forward(*args)
            self._last = graph, outputs
            return outputs

        return run

    def _kept(self, graph: BlockGraph, number: int, arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            raise CaptureError(
                message(
                    f"the block at scale {graph.context.scale}",
                    "take tensors alone as inputs of its graph",
                    f"{graph.sources[number]}: {type(arg).__name__}",
                )
            )
        passing = graph.sources[number] in self.activations or "cached_" in graph.sources[number]
        return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta") if passing else arg


def _equal(graph: BlockGraph, module: fx.GraphModule) -> bool:
    """Whether another capture computes the same of the same places, whose tensors have the same shapes."""
    return (
        graph.sources == _sources(module)
        and str(graph.module.graph) == str(module.graph)
        and _shapes(graph.module) == _shapes(module)
        and not any(node.op == "get_attr" for node in module.graph.nodes)
    )


def _shapes(module: fx.GraphModule) -> list[tuple[torch.Size, torch.dtype]]:
    examples = [node.meta.get("example_value") for node in module.graph.nodes if node.op == "placeholder"]
    return [(each.shape, each.dtype) for each in examples if isinstance(each, Tensor)]


def _context(generation: Generation, scale: int) -> GraphContext:
    return GraphContext(
        kind="dense",
        scale=scale,
        tokens=generation.tokens(scale),
        keys=generation.keys(scale),
        capacity=generation.keys(len(generation.plan.schedule)),
        heads=generation.plan.model.heads,
        head_dim=generation.plan.model.head_dim,
    )


def all_dense(plan: Plan) -> Plan:
    """The plan's schedule and sites with nothing sparse."""
    return plan.replace(
        layers=["dense"] * len(plan.layers), decision_scale=None, cs4a={}, csla={}, output_correction=False
    )


@dataclass
class Recorded:
    """What one dense generation showed of the blocks: all that tracing needs.

    Attributes:
        family, plan: whose schedule is the same.
        inputs: one tensor per input of the family.
        sites: the blocks.
        graphs: by scale, 0 being a call with the prefix alone; several where layers differ in more than their weights.
        image: the model's own, of ``inputs`` and seed 0.
    """

    family: Family
    plan: Plan
    inputs: dict[str, Tensor]
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
    """Record the blocks in one dense generation of ``inputs`` with seed 0.

    Raises:
        PlanError: the plan is for another schedule.
        CaptureError: a block is not one graph, or was not called.
    """
    if tuple(map(tuple, plan.schedule)) != tuple(map(tuple, family.schedule)):
        raise PlanError(
            message("plan", f"be made for the schedule {family.schedule}", f"one for {plan.schedule}"), plan.name
        )
    model: nn.Module = family.model
    full = family.longest(inputs)
    with family.functional():
        sites, graphs, image = _record(model, plan, list(family.block_values), lambda: family.generate(full, 0))
        if any(not torch.equal(full[name], inputs[name]) for name in inputs):
            image = family.generate(inputs, 0)  # a shorter prompt's packed rows would be sizes in the graphs
    return Recorded(family, plan, inputs, sites, graphs, image)


def _record(
    model: nn.Module, plan: Plan, activations: Sequence[str], generate: Callable[[], Any]
) -> tuple[list[Site], dict[int, list[BlockGraph]], Any]:
    """Run ``generate`` densely; the sites, the graphs of every scale and what it returned."""
    dense = all_dense(plan)
    plans = PlanSet.of([dense])
    sites = select_sites(model, plans, "block")
    classes = {site.forward for site in sites}
    if len(classes) != 1:
        raise CaptureError(message("blocks", "be of one class", f"{len(classes)} classes"))
    names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    recorder = Recorder(sites, names, activations)
    attach(model, Attachment(plans, recorder, strict=True))
    try:
        result = generate()
    finally:
        detach(model)
    return sites, recorder.graphs, result
