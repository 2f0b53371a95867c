"""Find modules that may hold self-attention, before anything runs, from the code of their forward."""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sparvar.compiler.torch_compat import fold_numpy
from sparvar.passes.capture.forms import LIBRARY_NAMES, is_library_function
from sparvar.runtime.generation import active

WRITTEN = "softmax(QK^T)V"

_KNOWN: dict[Callable[..., object], str] = {F.scaled_dot_product_attention: "scaled_dot_product_attention"}
_NAMES = LIBRARY_NAMES | {"scaled_dot_product_attention"}
_OTHER = {
    name: "attention over packed sequences of several lengths, as cross-attention to texts has it"
    for name in (
        *("flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func"),
        *("flash_attn_unpadded_func", "flash_attn_unpadded_kvpacked_func"),
    )
} | {
    name: "keys and values packed in one tensor leave no cache that grows by appending"
    for name in ("flash_attn_qkvpacked_func", "flash_attn_kvpacked_func")
}


@dataclass(frozen=True)
class Candidate:
    """A module whose own forward calls attention.

    Attributes:
        name: qualified module name.
        module: the module.
        calls: names of the attention functions its code refers to.
        block: name of the module that holds it and is a member of a list of blocks, or None.
        caches: its code reads or writes attributes named like a KV cache.
        problem: why it can be no site, or None.
    """

    name: str
    module: nn.Module
    calls: tuple[str, ...]
    block: str | None
    caches: bool
    problem: str | None = None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _functions(module: nn.Module) -> list[types.FunctionType]:
    """The forward of ``module`` and the methods of its class that it calls, directly or through others."""
    forward = _forward(module)
    found = [] if forward is None else [forward]
    for function in found:
        for code in _codes(function.__code__):
            for name in code.co_names:
                method = inspect.getattr_static(type(module), name, None)
                method = getattr(method, "__func__", method)
                if isinstance(method, types.FunctionType) and not _is_torchs(method) and method not in found:
                    found.append(method)
    return found


def _attention_names(functions: list[types.FunctionType]) -> list[str]:
    """Attention functions that ``functions`` refer to, directly or through an alias in their globals."""
    found = []
    for function in functions:
        for code in _codes(function.__code__):
            for name in code.co_names:
                bound = function.__globals__.get(name)
                known = _KNOWN.get(bound) if isinstance(bound, types.FunctionType | types.BuiltinFunctionType) else None
                own = getattr(bound, "__name__", None) if callable(bound) else None
                meant = known or next((n for n in (own, name) if n in _NAMES or n in _OTHER), None)
                if meant:
                    found.append(meant)
    if not found and any(_writes_attention(code) for function in functions for code in _codes(function.__code__)):
        found.append(WRITTEN)
    return sorted(set(found))


def _writes_attention(code: types.CodeType) -> bool:
    """A softmax and at least two matrix products in one body."""
    if "softmax" not in code.co_names:
        return False
    products = 0
    for step in dis.get_instructions(code):
        products += step.opname == "BINARY_MATRIX_MULTIPLY" or (step.opname == "BINARY_OP" and step.argrepr == "@")
        products += step.opname.startswith("LOAD") and step.argval in ("matmul", "bmm", "einsum")
    return products >= 2


def prepare_tracing(module: nn.Module, attention: nn.Module) -> None:
    """Let Dynamo trace a site: ``module``, which will be compiled, with the self-attention ``attention`` in it.

    The attention functions of flash-attn and xformers that a forward refers to stay one node each. Otherwise Dynamo
    traces into them, down to calls that differ between their versions. Every package's fakes are still what tells
    shapes, and Inductor and autograd still see what is inside. Sums of Python integers by NumPy stay integers.
    """
    for function in _functions(attention):
        for code in _codes(function.__code__):
            for name in code.co_names:
                bound = function.__globals__.get(name)
                if isinstance(bound, types.FunctionType) and is_library_function(bound, name):
                    torch.compiler.allow_in_graph(bound)
    if _sees_numpy(module):
        fold_numpy(active)


def _sees_numpy(module: nn.Module) -> bool:
    """Whether NumPy is a global where the forwards below ``module`` are written, or functions that they may call."""
    spaces = {}
    for part in module.modules():
        forward = _forward(part)
        if forward is not None and not _is_torchs(forward):
            spaces[id(forward.__globals__)] = forward.__globals__
    called = [value for space in spaces.values() for value in space.values() if isinstance(value, types.FunctionType)]
    spaces |= {id(each.__globals__): each.__globals__ for each in called if not _is_torchs(each)}
    numpy = sys.modules.get("numpy")
    values = (value for space in spaces.values() for value in space.values())
    return any(value is numpy or type(value).__module__ == "numpy" for value in values)


def _is_torchs(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] == "torch"


def _forward(module: nn.Module) -> types.FunctionType | None:
    forward = type(module).forward
    return forward if isinstance(forward, types.FunctionType) else None


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Modules of ``model``, in order of registration, whose own forward calls attention."""
    names = {module: name for name, module in model.named_modules()}
    blocks = {
        member: names[member]
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for member in module.children()
    }
    found = []
    for name, module in model.named_modules():
        functions = _functions(module)
        calls = _attention_names(functions)
        if not calls:
            continue
        parts = name.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        enclosing = next((p for p in prefixes if p in blocks.values()), None)
        words = {word for each in functions for code in _codes(each.__code__) for word in code.co_names}
        caches = any("cache" in word or word in ("k_cache", "v_cache") for word in words)
        problem = _OTHER.get(calls[0]) if all(call in _OTHER for call in calls) else None
        found.append(Candidate(name, module, tuple(calls), enclosing, caches, problem))
    return found
