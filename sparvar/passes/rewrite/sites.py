"""Replace attention by the op of its kind: ``site_decide``, ``site_sparse``, ``site_pruned``.

Both find the layer, the session and the plan at run time, so that one graph serves all layers.
Expected gain: at a share b of kept keys, attention of that scale costs about b of the dense one.
"""

from __future__ import annotations

import torch
from torch import fx

from sparvar.passes.base import GraphContext, Outcome
from sparvar.passes.capture import BHLC, AttentionCall, example, find_attention


class SiteRule:
    """Rewrites the self-attention of graphs of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"site_{kind}"

    def applies_to(self, context: GraphContext) -> bool:
        return context.kind == self.kind

    def apply(self, graph: fx.Graph, context: GraphContext) -> Outcome:
        outcome = Outcome(self.name)
        calls, refusals = find_attention(graph, context)
        outcome.refusals += refusals
        for call in calls:
            self._rewrite(graph, call)
            outcome.count += 1
        if calls:
            graph.eliminate_dead_code()  # scores and softmax of attention that was written by hand
        return outcome

    def _rewrite(self, graph: fx.Graph, call: AttentionCall) -> None:
        op = getattr(torch.ops.sparvar, self.name).default
        node = call.node
        dtype = example(node).dtype
        with graph.inserting_before(node):
            operands = [self._operand(graph, part, call, dtype) for part in (call.query, call.key, call.value)]
            new = graph.call_function(op, (*operands, call.scale))
            if call.layout != BHLC:
                new = graph.call_method("transpose", (new, 1, 2))
        new.meta.update(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)

    def _operand(self, graph: fx.Graph, part: fx.Node, call: AttentionCall, dtype: torch.dtype) -> fx.Node:
        # Custom ops ignore autocast: operands are brought to the type attention would return.
        if example(part).dtype != dtype:
            part = graph.call_method("to", (part, dtype))
        return part if call.layout == BHLC else graph.call_method("transpose", (part, 1, 2))
