"""Find modules that may hold self-attention, before anything runs, from the code of their forward."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

_KNOWN: dict[Callable[..., object], str] = {F.scaled_dot_product_attention: "scaled_dot_product_attention"}
_NAMES = frozenset({"scaled_dot_product_attention", "flash_attn_func", "memory_efficient_attention"})


@dataclass(frozen=True)
class Candidate:
    """A module whose own forward calls attention.

    Attributes:
        name: qualified module name.
        module: the module.
        calls: names of the attention functions its code refers to.
        block: name of the module that holds it and is a member of a list of blocks, or None.
        caches: its code reads or writes attributes named like a KV cache.
    """

    name: str
    module: nn.Module
    calls: tuple[str, ...]
    block: str | None
    caches: bool


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _attention_names(function: types.FunctionType) -> list[str]:
    """Attention functions that ``function`` refers to, directly or through an alias in its globals."""
    found = []
    for code in _codes(function.__code__):
        for name in code.co_names:
            bound = function.__globals__.get(name)
            known = _KNOWN.get(bound) if isinstance(bound, types.FunctionType | types.BuiltinFunctionType) else None
            if known or name in _NAMES:
                found.append(known or name)
    return sorted(set(found))


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
        forward = _forward(module)
        if forward is None:
            continue
        calls = _attention_names(forward)
        if not calls:
            continue
        parts = name.split(".")
        prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        enclosing = next((p for p in prefixes if p in blocks.values()), None)
        words = {word for code in _codes(forward.__code__) for word in code.co_names}
        caches = any("cache" in word or word in ("k_cache", "v_cache") for word in words)
        found.append(Candidate(name, module, tuple(calls), enclosing, caches))
    return found
