"""The ways in which published models write attention, brought to one form.

A form reads one node and says what it computes, or why nobody can know; what is self-attention over the scales is
decided in :mod:`attention`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

BHLC, BLHC = "BHLc", "BLHc"

#: Functions of flash-attn and xformers, by their own name: neither package need be installed, and stand-ins count.
FLASH = "flash_attn_func"
XFORMERS = "memory_efficient_attention"
LIBRARY_NAMES = frozenset({FLASH, XFORMERS})
_ALIASES: dict[Callable[..., Any], str] = {}

_SDPA_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_LIBRARY_ARGUMENTS = {
    FLASH: (
        *("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes"),
        *("deterministic", "return_attn_probs"),
    ),
    XFORMERS: ("query", "key", "value", "attn_bias", "p", "scale", "op", "output_dtype"),
}
_OFF: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("attn_mask", lambda x: x is None, "it has an attention mask; keys may only be dropped where every key is visible"),
    ("attn_bias", lambda x: x is None, "it has an attention bias; keys may only be dropped where every key is visible"),
    ("alibi_slopes", lambda x: x is None, "it has ALiBi slopes, which column-sparse attention does not add"),
    ("dropout_p", lambda x: x == 0, "its dropout is {}, that is training"),
    ("p", lambda x: x == 0, "its dropout is {}, that is training"),
    ("is_causal", lambda x: not x, "it is causal within the call; scales attend to all tokens of their own"),
    ("causal", lambda x: not x, "it is causal within the call; scales attend to all tokens of their own"),
    ("window_size", lambda x: tuple(x or (-1, -1)) in ((-1, -1), (None, None)), "it has a sliding window of {}"),
    ("softcap", lambda x: not x, "its scores are capped (softcap {})"),
    ("return_attn_probs", lambda x: not x, "it also returns attention probabilities"),
)
_MEANT = frozenset(
    {"q", "k", "v", "query", "key", "value", "scale", "softmax_scale", "enable_gqa", "deterministic", "op"}
)


@dataclass(frozen=True)
class Form:
    """What one attention node computes.

    Attributes:
        node: the call, or the last of several nodes of hand-written attention.
        query, key, value: operands in ``layout``.
        scale: softmax scale, None for ``head_dim ** -0.5``.
        layout: ``BHLc`` or ``BLHc``.
        grouped: several query heads may share a key head.
        problem: why it cannot be anything but what it is, or None.
    """

    node: fx.Node
    query: fx.Node | None = None
    key: fx.Node | None = None
    value: fx.Node | None = None
    scale: float | None = None
    layout: str = BHLC
    grouped: bool = False
    problem: str | None = None


def is_library_function(function: Callable[..., Any], called: str) -> bool:
    """Whether ``function``, which a model calls by the name ``called``, is one of `LIBRARY_NAMES`, by either name.

    What it is then counts for all graphs that call it.
    """
    meant = next((name for name in (getattr(function, "__name__", ""), called) if name in LIBRARY_NAMES), None)
    if meant is not None:
        _ALIASES[function] = meant
    return meant is not None


def example(node: fx.Node) -> Tensor:
    """The fake tensor that Dynamo recorded for a node."""
    value = node.meta.get("example_value", node.meta.get("val"))
    if not isinstance(value, Tensor):
        raise TypeError(f"graph node {node.name}: must carry an example tensor, got {type(value).__name__}")
    return value


def read_form(node: fx.Node) -> Form | None:
    """The attention that ends in ``node``, or None where there is none."""
    if node.op == "call_function":
        if node.target is F.scaled_dot_product_attention:
            return _sdpa(node)
        name = _ALIASES.get(node.target, getattr(node.target, "__name__", "")) if callable(node.target) else ""
        if name in LIBRARY_NAMES:
            return _library(node, name)
    return _written(node)


def _problem(given: dict[str, Any]) -> str | None:
    for name, off, text in _OFF:
        if name in given and not off(given[name]):
            return text.format(given[name])
    unknown = [
        name for name, value in given.items() if value is not None and name not in _MEANT | {n for n, *_ in _OFF}
    ]
    return f"its argument {unknown[0]!r} is not one that sparvar knows" if unknown else None


def _sdpa(node: fx.Node) -> Form:
    given: dict[str, Any] = dict(zip(_SDPA_NAMES, node.args, strict=False)) | dict(node.kwargs)
    grouped = bool(given.get("enable_gqa"))
    return _of(node, given, ("query", "key", "value"), given.get("scale"), BHLC, grouped, _problem(given))


def _library(node: fx.Node, name: str) -> Form:
    # Versions differ in the order of what follows q, k, v: the function itself knows best.
    names: tuple[str, ...] = _LIBRARY_ARGUMENTS[name]
    try:
        parameters = dict(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        parameters = {}
    if len(parameters) >= 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        names = tuple(parameters)
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    operands = ("q", "k", "v") if name == FLASH else ("query", "key", "value")
    given |= {wanted: given.pop(had) for wanted, had in zip(operands, names[:3], strict=True) if had in given}
    scale = given.get("softmax_scale", given.get("scale"))
    return _of(node, given, operands, scale, BLHC, name == FLASH, _problem(given))


def _of(
    node: fx.Node,
    given: dict[str, Any],
    names: tuple[str, str, str],
    scale: object,
    layout: str,
    grouped: bool,
    problem: str | None,
) -> Form:
    q, k, v = (given.get(name) for name in names)
    if not (isinstance(q, fx.Node) and isinstance(k, fx.Node) and isinstance(v, fx.Node)):
        return Form(node, problem="its queries, keys or values are not tensors of the graph")
    if isinstance(scale, fx.Node):
        return Form(node, q, k, v, None, layout, grouped, problem or "its softmax scale is a tensor, not a number")
    number = float(scale) if isinstance(scale, int | float) else None
    return Form(node, q, k, v, number, layout, grouped, problem)


# Hand-written attention: matmul(softmax(matmul(q, k^T) * scale), v).

_MATMUL = (torch.matmul, operator.matmul)
_SOFTMAX = (torch.softmax, F.softmax)


def _is_call(node: object, functions: tuple[Any, ...], *methods: str) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target in methods


def is_matmul(node: object) -> bool:
    return _is_call(node, _MATMUL, "matmul", "__matmul__")


def _through_casts(node: object) -> object:
    """``node`` before casts and dropout that is switched off."""
    while isinstance(node, fx.Node):
        dropout = _is_call(node, (F.dropout, torch.dropout))
        if dropout:
            given = dict(zip(("input", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
            if given.get("p", 0.5) != 0 and given.get("training", True):
                return node
        elif not _is_call(node, (), "to", "type_as", "float", "half", "bfloat16", "contiguous"):
            return node
        node = node.args[0]
    return node


def _transposed(node: object) -> fx.Node | None:
    """What ``node`` is the transpose of its last two dimensions of."""
    if not isinstance(node, fx.Node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    rank = example(node.args[0]).ndim
    if _is_call(node, (torch.transpose, torch.swapaxes), "transpose", "swapaxes", "mT"):
        axes = [axis % rank for axis in node.args[1:] if isinstance(axis, int)]
        if sorted(axes) == [rank - 2, rank - 1]:
            return node.args[0]
    if node.op == "call_function" and node.target is getattr and node.args[1] == "mT":
        return node.args[0]
    return None


def _written(node: fx.Node) -> Form | None:
    if not is_matmul(node):
        return None
    weights = _through_casts(node.args[0])
    if _is_call(weights, (F.dropout, torch.dropout)):
        assert isinstance(weights, fx.Node)
        inner = _through_casts(weights.args[0])
        return Form(node, problem="its dropout is on, that is training") if _is_softmax(inner) else None
    if not _is_softmax(weights):
        return None
    assert isinstance(weights, fx.Node)
    scores, scale, problem = _unscaled(_through_casts(weights.args[0]))
    if problem is not None:
        return Form(node, problem=problem)
    if not isinstance(scores, fx.Node) or not is_matmul(scores):
        return Form(node, problem="its scores are not a product of queries and keys (an addition is a mask or bias)")
    query, key, value = scores.args[0], _transposed(scores.args[1]), node.args[1]
    if not (isinstance(query, fx.Node) and key is not None and isinstance(value, fx.Node)):
        return Form(node, problem="its keys are not transposed where they meet the queries")
    return Form(node, query, key, value, scale, BHLC)


def _is_softmax(node: object) -> bool:
    if not _is_call(node, _SOFTMAX, "softmax"):
        return False
    assert isinstance(node, fx.Node)
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(dim, int) and dim % example(node).ndim == example(node).ndim - 1


def _unscaled(node: object) -> tuple[object, float, str | None]:
    """Scores without their constant factors, and the product of those."""
    scale = 1.0
    while isinstance(node, fx.Node):
        times = _is_call(node, (operator.mul, operator.imul, torch.mul), "mul", "mul_")
        over = _is_call(node, (operator.truediv, operator.itruediv, torch.div), "div", "div_")
        if not (times or over):
            break
        left, right = node.args[:2]
        if times and isinstance(left, int | float):
            left, right = right, left
        if not isinstance(right, int | float):
            return node, scale, "its scores are scaled by a tensor, not a number"
        scale = scale * right if times else scale / right
        node = _through_casts(left)
    return node, scale, None
