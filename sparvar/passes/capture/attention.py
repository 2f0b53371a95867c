"""Recognise self-attention over the scales in a Dynamo graph, however the model writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from sparvar.passes.base import GraphContext, Refusal
from sparvar.passes.capture.forms import BHLC, Form, example, read_form

RULE = "capture"

#: Calls through which keys and values are followed back to the cache: they change type, layout or repeat heads.
_SEE_THROUGH = frozenset(
    {
        *("transpose", "swapaxes", "permute", "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"),
        *("expand", "repeat_interleave", "contiguous", "clone", "to", "type", "type_as", "float", "half", "bfloat16"),
    }
)


@dataclass(frozen=True)
class AttentionCall:
    """One self-attention over the scales.

    Attributes:
        node: the call.
        query, key, value: its operands, [B, H, N, D] and [B, H, T, D], or with H third where ``layout`` is ``BLHc``.
        scale: softmax scale, a number.
        layout: ``BHLc`` or ``BLHc``.
        caches: the nodes that go back to the model as its cache of keys and of values.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    layout: str
    caches: tuple[fx.Node, fx.Node]


def is_cat(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (torch.cat, torch.concat, torch.concatenate)


def _cache_of(node: fx.Node, outputs: set[fx.Node]) -> fx.Node | None:
    """The graph output that ``node`` is a view or a cast of, or None."""
    seen: fx.Node | None = node
    while seen is not None:
        if seen in outputs:
            return seen
        name = seen.target if seen.op == "call_method" else getattr(seen.target, "__name__", "")
        index = name == "getitem" and _keeps_all(seen)
        source = seen.args[0] if seen.args and (name in _SEE_THROUGH or index) else None
        seen = source if isinstance(source, fx.Node) else None
    return None


def _keeps_all(node: fx.Node) -> bool:
    """Whether an indexing only adds dimensions, as models do before they repeat key heads."""
    parts = node.args[1]
    parts = parts if isinstance(parts, tuple) else (parts,)
    return all(part in (None, Ellipsis, slice(None)) for part in parts)


def find_attention(graph: fx.Graph, context: GraphContext) -> tuple[list[AttentionCall], list[Refusal]]:
    """Self-attention calls over the context's queries and keys, and why the others are not.

    A call is taken when nothing masks or drops, its lengths are the scale's, and its keys and values go back to the
    model as the cache (graph outputs, perhaps cast or seen in another layout), which those of cross-attention do not.
    """
    outputs = set(graph.output_node().all_input_nodes)
    found: list[AttentionCall] = []
    refusals: list[Refusal] = []
    for node in graph.nodes:
        form = read_form(node)
        if form is None:
            continue
        call = _site(form, outputs, context)
        if isinstance(call, str):
            refusals.append(Refusal(RULE, node.name, call))
        else:
            found.append(call)
    return found, refusals


def _site(form: Form, outputs: set[fx.Node], context: GraphContext) -> AttentionCall | str:
    if form.problem is not None:
        return form.problem
    assert form.query is not None and form.key is not None and form.value is not None
    q, k, v = example(form.query), example(form.key), example(form.value)
    if q.ndim != 4 or k.ndim != 4:
        return f"queries have {q.ndim} and keys {k.ndim} dimensions, must be 4 [B, H, N, D]"
    tokens, keys = context.tokens, context.keys
    length, heads = (2, 1) if form.layout == BHLC else (1, 2)
    # Once the cache rule has given kept tokens their places among all, keys are those of whole grids.
    lengths = (keys, keys + context.whole - tokens) if context.whole else (keys,)
    if q.shape[length] != tokens or k.shape[length] not in lengths:
        return (
            f"it has {q.shape[length]} queries and {k.shape[length]} keys where the schedule has {tokens} and {keys}:"
            " not self-attention over the scales"
        )
    if q.shape[heads] != k.shape[heads] and not (form.grouped and q.shape[heads] % k.shape[heads] == 0):
        return f"it has {q.shape[heads]} query heads and {k.shape[heads]} key heads"
    if v.shape != k.shape or q.shape[-1] != k.shape[-1]:
        return f"queries are {list(q.shape)}, keys {list(k.shape)} and values {list(v.shape)}: one head_dim is needed"
    if context.heads and (q.shape[heads], q.shape[-1]) != (context.heads, context.head_dim):
        return (
            f"it has {q.shape[heads]} heads of {q.shape[-1]} where the plan has {context.heads} of {context.head_dim}:"
            " the plan is for another model, or the checkpoint for another size"
        )
    caches = _cache_of(form.key, outputs), _cache_of(form.value, outputs)
    if caches[0] is None or caches[1] is None:
        return "its keys and values do not go back to the model as a cache (cross-attention or no KV cache)"
    scale = form.scale if form.scale is not None else 1 / math.sqrt(q.shape[-1])
    return AttentionCall(form.node, form.query, form.key, form.value, scale, form.layout, (caches[0], caches[1]))
