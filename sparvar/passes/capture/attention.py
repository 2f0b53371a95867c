"""Recognise self-attention in a Dynamo graph by its structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from sparvar.passes.base import Refusal

RULE = "capture"

_SDPA_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention found in a graph.

    Attributes:
        node: the call.
        query, key, value: its operands, [B, H, N, D] and [B, H, T, D].
        scale: softmax scale, a number.
        cached: keys and values are graph outputs, that is, the model keeps them for later scales.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    cached: bool


def example(node: fx.Node) -> Tensor:
    """The fake tensor that Dynamo recorded for a node."""
    value = node.meta.get("example_value", node.meta.get("val"))
    if not isinstance(value, Tensor):
        raise TypeError(f"graph node {node.name}: must carry an example tensor, got {type(value).__name__}")
    return value


def sdpa_arguments(node: fx.Node) -> dict[str, object]:
    """Arguments of a ``scaled_dot_product_attention`` call by name, defaults filled in."""
    given: dict[str, object] = {
        "attn_mask": None,
        "dropout_p": 0.0,
        "is_causal": False,
        "scale": None,
        "enable_gqa": False,
    }
    given.update(zip(_SDPA_NAMES, node.args, strict=False))
    given.update(node.kwargs)
    return given


def is_attention(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def _outputs(graph: fx.Graph) -> set[fx.Node]:
    return set(graph.output_node().all_input_nodes)


def find_attention(graph: fx.Graph, tokens: int, keys: int) -> tuple[list[AttentionCall], list[Refusal]]:
    """Self-attention calls over ``tokens`` queries and ``keys`` keys, and why the others are not.

    A call is taken when nothing masks, drops or shares heads, its lengths are the scale's, and its
    keys and values go back to the model as the cache (graph outputs), which those of
    cross-attention do not.
    """
    outputs = _outputs(graph)
    found: list[AttentionCall] = []
    refusals: list[Refusal] = []
    for node in graph.nodes:
        if not is_attention(node):
            continue
        given = sdpa_arguments(node)
        query, key, value = given["query"], given["key"], given["value"]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
        q, k = example(query), example(key)
        cached = key in outputs and value in outputs
        reason = None
        if given["attn_mask"] is not None:
            reason = "it has an attention mask; keys may only be dropped where every key is visible"
        elif given["dropout_p"] != 0.0:
            reason = f"its dropout is {given['dropout_p']}, that is training"
        elif given["is_causal"]:
            reason = "it is causal within the call; scales attend to all tokens of their own"
        elif given["enable_gqa"]:
            reason = "queries share key heads (enable_gqa)"
        elif q.ndim != 4 or k.ndim != 4:
            reason = f"queries have {q.ndim} and keys {k.ndim} dimensions, must be 4 [B, H, N, D]"
        elif q.shape[2] != tokens or k.shape[2] != keys:
            reason = (
                f"it has {q.shape[2]} queries and {k.shape[2]} keys where the schedule has {tokens} and {keys}:"
                " not self-attention over the scales"
            )
        elif not cached:
            reason = "its keys and values do not go back to the model as a cache (cross-attention or no KV cache)"
        if reason is not None:
            refusals.append(Refusal(RULE, node.name, reason))
            continue
        scale = given["scale"]
        found.append(
            AttentionCall(
                node=node,
                query=query,
                key=key,
                value=value,
                scale=float(scale) if isinstance(scale, int | float) else q.shape[-1] ** -0.5,
                cached=cached,
            )
        )
    return found, refusals


def is_cat(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (torch.cat, torch.concat, torch.concatenate)
