"""Definition and registration of ops in the torch namespace `sparvar`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.torch_compat import decomposes_triton_ops, functional_mode, is_traced, name_kernels

__all__ = ["NAMESPACE", "define", "launchable"]

NAMESPACE = "sparvar"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    gpu: Callable[..., ModuleType | None] | None = None,
) -> Callable[..., Any]:
    """Define the op `schema` (name and arguments without namespace) and return its callable overload.

    `run` serves every real device; `fake` serves meta and fake tensors. `Library.impl` costs a few microseconds
    a call where `torch.library.custom_op` costs some tens.

    `gpu` gets the op's arguments and returns the module of the Triton kernels that serve them, None where others do.
    That module has `run` and the tuple `KERNELS`. While AOTAutograd traces such a call, the op is replaced by what
    `run` does: torch ops and kernels recorded through `launchable`, so that Inductor and AOTInductor compile the
    kernels into their own code. `torch.library.triton_op` does the same, but for ops that have no other path.
    """
    name = schema.split("(", 1)[0]
    qualified = f"{NAMESPACE}::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    if gpu is not None:
        _decompose_for(qualified, run, gpu)
        fake = _with_cache_key(qualified, fake, gpu)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    overload: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return overload


def launchable(kernel: Any, sample: Tensor) -> Any:
    """Return what `[grid](...)` launches: `kernel`, or its recordable form while `sample`, an operand, is traced."""
    # Recording a call that is not traced costs a millisecond.
    return torch.library.wrap_triton(kernel) if is_traced(sample) else kernel


def _decompose_for(qualified: str, run: Callable[..., Any], gpu: Callable[..., ModuleType | None]) -> None:
    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # torch.export keeps ops whole: an exported program must not hold Triton source. Inductor decomposes it later.
        if not decomposes_triton_ops() or gpu(*args, **kwargs) is None:
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return run(*args, **kwargs)

    torch.library.register_torch_dispatch(qualified, functional_mode(), rule, lib=_LIBRARY)


def _with_cache_key(
    qualified: str, fake: Callable[..., Any], gpu: Callable[..., ModuleType | None]
) -> Callable[..., Any]:
    """Return `fake`, which also names the op's kernels to AOTAutograd's cache.

    The cache's key knows the op by name only. Its table of kernels behind ops adds their sources, so that neither a
    changed kernel nor another SPARVAR_GPU_KERNELS is served a stale artefact. Dynamo runs the fake before the key.
    """

    def named(*args: Any, **kwargs: Any) -> Any:
        module = gpu(*args, **kwargs)
        name_kernels(qualified, module.KERNELS if module is not None else ())
        return fake(*args, **kwargs)

    return named
