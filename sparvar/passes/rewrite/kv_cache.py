"""Replace the ``cat`` that grows a KV cache by an append into a preallocated buffer of the compute dtype.

Expected gain: no copy of the whole history at every scale (for the shipped model 10 521 tokens are
written once instead of about 28 700), and no moment at which both the old and the new cache live. Under autocast
Infinity keeps fp32 keys that attention rounds to bf16 at every call: rounded once, when they are appended, they take
half the memory and give the same result to the last bit.
"""

from __future__ import annotations

import torch
from torch import fx

from sparvar.kernels.kv_cache.buffers import buffer_shape, row_strides
from sparvar.passes.base import GraphContext, Outcome
from sparvar.passes.capture import AttentionCall, example, find_attention, is_cat, read_form


class KvCacheRule:
    """``cat((cache, new), dim)`` that feeds attention and goes back to the model: acquire and extend."""

    name = "kv_cache"

    def applies_to(self, context: GraphContext) -> bool:
        return True

    def apply(self, graph: fx.Graph, context: GraphContext) -> Outcome:
        outcome = Outcome(self.name)
        calls, _ = find_attention(graph, context)
        for call in calls:
            for node in call.caches:
                self._rewrite(graph, node, call, context, outcome)
        if not calls:
            for node in graph.nodes:
                if read_form(node) is not None:
                    outcome.refuse(node, "its attention is not a recognised site")
        return outcome

    def _rewrite(
        self, graph: fx.Graph, node: fx.Node, call: AttentionCall, context: GraphContext, outcome: Outcome
    ) -> None:
        dtype = compute_dtype(node, call)
        if context.keys == context.tokens:  # the first call: there is no cache yet
            if dtype != example(node).dtype:
                _narrow_output(graph, node, dtype)
            return
        if not is_cat(node):
            if node.op != "placeholder":
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
        if dtype == grown.dtype and old.dtype != example(new).dtype:
            outcome.refuse(node, f"the cache is {old.dtype} and the new tokens are {example(new).dtype}")
            return
        if context.whole and any(user.op == "call_method" and user.target in _SIZED for user in node.users):
            outcome.refuse(node, "the grown cache is reshaped to a size that counts the kept tokens alone")
            return
        if not _views_fit(node, row_strides(buffer_shape(grown.shape, context.capacity, dim))):
            outcome.refuse(node, "the grown cache is viewed in a way that a buffer with room behind it does not allow")
            return
        ops = torch.ops.sparvar
        with graph.inserting_before(node):
            cast = [
                part if example(part).dtype == dtype else graph.call_method("to", (part, dtype))
                for part in (previous, new)
            ]
            if context.whole:
                cast[1] = graph.call_function(ops.site_spread.default, (cast[1], context.whole, dim))
            token = graph.call_function(ops.kv_acquire.default, (cast[0], context.capacity, dim))
            view = graph.call_function(ops.kv_extend.default, (cast[1], token, old.shape[dim], context.capacity, dim))
        if context.whole:
            shape = list(grown.shape)
            shape[dim] += context.whole - context.tokens
            grown = grown.new_empty(shape)
        view.meta["example_value"] = grown if dtype == grown.dtype else grown.to(dtype)
        node.replace_all_uses_with(view)
        graph.erase_node(node)
        outcome.count += 1


def compute_dtype(node: fx.Node, call: AttentionCall) -> torch.dtype:
    """The type in which attention computes, where nothing but attention and the model's cache see the keys.

    Others, a norm of the keys say, would see rounded ones, so that the keys keep their type then.
    """
    have, wanted = example(node).dtype, example(call.node).dtype
    if have == wanted or not have.is_floating_point or have.itemsize <= wanted.itemsize:
        return have
    return wanted if _feeds_only(node, call.node, set()) else have


_PURE_VIEWS = frozenset(
    {"transpose", "swapaxes", "permute", "to", "type_as", "half", "bfloat16", "contiguous", "float"}
)


_SIZED = frozenset({"view", "reshape", "expand"})


def _feeds_only(node: fx.Node, attention: fx.Node, seen: set[fx.Node]) -> bool:
    for user in node.users:
        if user in seen or user is attention or user.op == "output":
            continue
        name = user.target if user.op == "call_method" else getattr(user.target, "__name__", "")
        if name not in _PURE_VIEWS or not _feeds_only(user, attention, seen | {node}):
            return False
    return True


def _narrow_output(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> None:
    """The first scale's keys go back to the model rounded; attention reads the same."""
    if node.op == "placeholder":
        return
    with graph.inserting_after(node):
        narrow = graph.call_method("to", (node, dtype))
    narrow.meta["example_value"] = example(node).to(dtype)
    node.replace_all_uses_with(narrow, delete_user_cb=lambda user: user is not narrow)


def _views_fit(node: fx.Node, strides: tuple[int, ...]) -> bool:
    """Whether every ``view`` of the grown cache is one of a tensor with these strides, too."""
    for user in node.users:
        if user.op == "call_method" and user.target == "view":
            shape = example(node).shape
            probe = torch.empty_strided(shape, strides, device="meta")
            try:
                probe.view(example(user).shape)
            except RuntimeError:
                return False
    return True
