"""Turn a captured block graph into a program: a function of explicit tensors alone.

Expected gain over the in-process path: no guards and no Python around the blocks; keys and values are written into a
buffer that the caller owns, by the kernel that computes them, so that no custom op is needed to append.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from sparvar.errors import CaptureError, message
from sparvar.export.capture import BlockGraph
from sparvar.export.sites import SiteFunction, SiteInterface, interface, native_site
from sparvar.passes import GraphContext
from sparvar.passes.capture import BHLC, AttentionCall, example, find_attention, is_cat
from sparvar.passes.rewrite import RowMlpRule, compute_dtype
from sparvar.scale_plans import Plan

SiteMaker = Callable[[Plan, str, int, float], SiteFunction]


@dataclass
class BlockProgram:
    """A block at one scale as a function of tensors.

    Attributes:
        module: the rewritten graph; its inputs and outputs are in the order of ``inputs`` and ``outputs``.
        inputs: value names, ``{layer}`` where each layer has its own.
        shapes: an example of every input, on the meta device.
        outputs: value names.
        buffers: shape and dtype of the layer's buffers of keys and values, by name.
    """

    scale: int
    kind: str
    module: fx.GraphModule
    inputs: list[str]
    examples: list[Tensor]
    outputs: list[str]
    buffers: dict[str, Tensor] = field(default_factory=dict)


def append_to(buffer: Tensor, new: Tensor, start: int, dim: int) -> Tensor:
    """Write ``new`` behind the first ``start`` rows of ``buffer`` and return all rows up to there."""
    count = new.shape[dim]
    buffer.narrow(dim, start, count).copy_(new)
    return buffer.narrow(dim, 0, start + count)


def block_program(
    graph: BlockGraph,
    kind: str,
    plan: Plan,
    inputs: list[str],
    site: SiteMaker = native_site,
    functional: bool = False,
) -> BlockProgram:
    """The program of a kind from a captured graph.

    Args:
        graph: as recorded.
        kind: one of `sparvar.export.sites.KINDS`.
        inputs: value name of every placeholder, "" for the caches.
        site: makes what stands for attention.
        functional: keys and values come in and go out as values ``k.{layer}`` and ``v.{layer}``, as formats without
            mutable inputs need it, and large MLPs stay whole. Otherwise they are written into buffers, and MLPs run
            over chunks of rows at sparse scales, as in process.

    Raises:
        CaptureError: the attention was not recognised.
    """
    module = copy.deepcopy(graph.module)
    editor = _Editor(module.graph, graph.context, inputs)
    call = editor.attention()
    takes = interface(plan, kind, graph.context.scale)
    dtypes = [compute_dtype(node, call) for node in call.caches]
    given: list[fx.Node] = []
    if kind != "dense":
        function = site(plan, kind, graph.context.scale, call.scale)
        given = editor.replace(call, takes, taken_examples(plan, takes, call), function)
    buffers, caches = {}, dict(zip(("k.{layer}", "v.{layer}"), call.caches, strict=True))
    if functional:
        last = graph.context.keys == graph.context.capacity
        given += [] if last else list(caches.values())
        outputs = [*takes.gives, *(() if last else caches)]
        for name, node in caches.items():
            editor.pass_through(node, name)
    else:
        outputs = list(takes.gives)
        for (name, node), dtype in zip(caches.items(), dtypes, strict=True):
            buffers[f"buffers/{name}"] = editor.append(node, dtype, f"buffers/{name}")
    editor.finish(graph.result, given)
    if kind in ("cs4a", "csla") and not functional:
        RowMlpRule().apply(module.graph, dataclasses.replace(graph.context, kind="sparse"))
    module.graph.lint()
    module.recompile()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    return BlockProgram(
        graph.context.scale,
        kind,
        module,
        [editor.names[node] for node in placeholders],
        [_meta(example(node)) for node in placeholders],
        ["x", *outputs],
        buffers,
    )


def taken_examples(plan: Plan, takes: SiteInterface, call: AttentionCall) -> list[Tensor]:
    """Shapes of what a site takes beside q, k and v, in the order of ``takes.takes``."""
    query, key = example(call.query), example(call.key)
    if call.layout != BHLC:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    return [
        torch.empty(shape, dtype=dtype or example(call.node).dtype, device="meta")
        for shape, dtype in takes.shapes(plan, query.shape[0], key.shape[1], query.shape[1], query.shape[3])
    ]


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _item(parts: tuple[Tensor, ...], number: int) -> Tensor:
    return parts[number]


class _Editor:
    """Edits of one graph; ``names`` are the value names of its placeholders."""

    def __init__(self, graph: fx.Graph, context: GraphContext, inputs: list[str]) -> None:
        self.graph, self.context = graph, context
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.names = dict(zip(placeholders, inputs, strict=True))
        self.first = next(node for node in graph.nodes if node.op != "placeholder")

    def attention(self) -> AttentionCall:
        """The one self-attention."""
        calls, refusals = find_attention(self.graph, self.context)
        if len(calls) != 1:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refusals)
            got = f"{len(calls)}" + (f" ({reasons})" if reasons else "")
            raise CaptureError(message(self._subject("block"), "hold one self-attention with a KV cache", got))
        return calls[0]

    def replace(
        self, call: AttentionCall, takes: SiteInterface, examples: list[Tensor], function: SiteFunction
    ) -> list[fx.Node]:
        """Put ``function`` at the place of attention; returns what it gives beside the output."""
        taken = [self._placeholder(name, each) for name, each in zip(takes.takes, examples, strict=True)]
        node, swap = call.node, call.layout != BHLC
        dtype = example(node).dtype
        with self.graph.inserting_before(node):
            operands = []
            for part in (call.query, call.key, call.value):
                # Custom ops ignore autocast: operands are brought to the type attention would return.
                cast = part if example(part).dtype == dtype else self.graph.call_method("to", (part, dtype))
                operands.append(self.graph.call_method("transpose", (cast, 1, 2)) if swap else cast)
            both = self.graph.call_function(function, (*operands, *taken))
            parts = [self.graph.call_function(_item, (both, number)) for number in range(1 + len(takes.gives))]
            new = self.graph.call_method("transpose", (parts[0], 1, 2)) if swap else parts[0]
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return parts[1:]

    def append(self, cache: fx.Node, dtype: torch.dtype, name: str) -> Tensor:
        """Write new keys or values into a buffer of the plan's last length; returns an example of the buffer."""
        grown = example(cache)
        dim = self._sequence_dim(grown)
        start = self.context.keys - self.context.tokens
        new = self._new_part(cache) if start else cache
        shape = list(grown.shape)
        shape[dim] = self.context.capacity
        buffer_example = torch.empty(shape, dtype=dtype, device="meta")
        buffer = self._placeholder(name, buffer_example)
        with self.graph.inserting_before(cache.next):
            cast = new if example(new).dtype == dtype else self.graph.call_method("to", (new, dtype))
            rows = self.graph.call_function(append_to, (buffer, cast, start, dim))
        rows.meta["example_value"] = torch.empty(grown.shape, dtype=dtype, device="meta")
        if start:
            cache.replace_all_uses_with(rows)
            self.graph.erase_node(cache)
        return buffer_example

    def pass_through(self, cache: fx.Node, name: str) -> None:
        """Call the cache that comes in by its value's name."""
        if self.context.keys != self.context.tokens:
            old = self._parts(cache)[0]
            self.names[old] = name

    def finish(self, result: int, given: list[fx.Node]) -> None:
        """Give back the block's output and what the site gives; drop inputs that nothing reads."""
        output = self.graph.output_node()
        kept = output.args[0][result]  # type: ignore[index]
        output.args = ((kept, *given),)
        for node in reversed(list(self.graph.nodes)):
            # Appending has no users at the first scale, but it writes.
            if not node.users and node.op != "output" and node.target is not append_to:
                self.graph.erase_node(node)
        self.names = {node: name for node, name in self.names.items() if node in set(self.graph.nodes)}

    def _subject(self, what: str) -> str:
        return f"the {what} at scale {self.context.scale}"

    def _placeholder(self, name: str, tensor: Tensor) -> fx.Node:
        plain = name.replace("/", "_").replace(".", "_").replace("{layer}", "n")
        with self.graph.inserting_before(self.first):
            node = self.graph.placeholder(plain)
        node.meta["example_value"] = tensor
        self.names[node] = name
        return node

    def _sequence_dim(self, grown: Tensor) -> int:
        found = [dim for dim in (2, 1) if grown.ndim == 4 and grown.shape[dim] == self.context.keys]
        if not found:
            must = f"be [B, H, T, D] or [B, T, H, D] with T = {self.context.keys}"
            raise CaptureError(message(self._subject("cache"), must, list(grown.shape)))
        return found[0]

    def _new_part(self, cache: fx.Node) -> fx.Node:
        return self._parts(cache)[1]

    def _parts(self, cache: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The old cache and the new tokens."""
        parts = (cache.args[0] if cache.args else cache.kwargs.get("tensors")) if is_cat(cache) else None
        if isinstance(parts, list | tuple) and len(parts) == 2:
            old, new = parts
            if isinstance(old, fx.Node) and old.op == "placeholder" and isinstance(new, fx.Node):
                return old, new
        must = "be a cat of the old cache and the new tokens"
        raise CaptureError(message(self._subject("cache"), must, f"{cache.op} {cache.target}"))
