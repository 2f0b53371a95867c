"""Replace the ``cat`` that grows a KV cache by an append into a preallocated buffer.

Expected gain: no copy of the whole history at every scale (for the shipped model 10 521 tokens are
written once instead of about 28 700), and no moment at which both the old and the new cache live.
"""

from __future__ import annotations

import torch
from torch import fx

from sparvar.passes.base import GraphContext, Outcome
from sparvar.passes.capture import example, find_attention, is_attention, is_cat


class KvCacheRule:
    """``cat((cache, new), dim)`` that feeds attention and goes back to the model: adopt and extend."""

    name = "kv_cache"

    def applies_to(self, context: GraphContext) -> bool:
        return True

    def apply(self, graph: fx.Graph, context: GraphContext) -> Outcome:
        outcome = Outcome(self.name)
        calls, _ = find_attention(graph, context.tokens, context.keys)
        operands = [node for call in calls for node in (call.key, call.value)]
        for node in operands:
            self._rewrite(graph, node, context, outcome)
        if not operands:
            for node in graph.nodes:
                if is_attention(node):
                    outcome.refuse(node, "its attention is not a recognised site")
        return outcome

    def _rewrite(self, graph: fx.Graph, node: fx.Node, context: GraphContext, outcome: Outcome) -> None:
        if not is_cat(node):
            if node.op != "placeholder" and context.scale > 1:
                outcome.refuse(node, f"keys or values come from {node.target}, not from a cat with the cache")
            return
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, list | tuple) or len(parts) != 2 or not isinstance(dim, int):
            outcome.refuse(node, "the cat does not join exactly a cache and new tokens")
            return
        previous, new = parts
        if not (isinstance(previous, fx.Node) and isinstance(new, fx.Node)) or previous.op != "placeholder":
            outcome.refuse(node, "the first part of the cat is not a cache that came in as an argument")
            return
        old, grown = example(previous), example(node)
        dim = dim % grown.ndim
        if old.dtype != example(new).dtype:
            outcome.refuse(node, f"the cache is {old.dtype} and the new tokens are {example(new).dtype}")
            return
        ops = torch.ops.sparvar
        with graph.inserting_before(node):
            token = graph.call_function(ops.kv_adopt.default, (previous, context.capacity, dim))
            view = graph.call_function(ops.kv_extend.default, (new, token, old.shape[dim], context.capacity, dim))
        view.meta["example_value"] = grown
        node.replace_all_uses_with(view)
        graph.erase_node(node)
        outcome.count += 1
