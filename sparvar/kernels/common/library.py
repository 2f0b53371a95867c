"""Definition and registration of ops in the torch namespace `sparvar`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.checks import check_inference
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.native import use_native
from sparvar.kernels.common.torch_compat import decomposes_triton_ops, functional_mode, is_traced, name_kernels

NAMESPACE = "sparvar"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


@dataclass(frozen=True)
class ByDevice:
    """The implementations of one op. A call runs the one for the device and dtype of its first argument, a tensor.

    Attributes:
        name: of the op, and of its folder: `<name>/gpu.py` holds the Triton kernels and their `run`.
        native: what runs on the CPU where C++ kernels are in use and have the dtype.
        portable: torch ops, on any device: what runs everywhere else.
        dtypes: those of the native kernels.
        triton: whether there are Triton kernels.
    """

    name: str
    native: Callable[..., Any]
    portable: Callable[..., Any]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    triton: bool = True

    def __call__(self, sample: Tensor, *rest: Any) -> Any:
        if sample.device.type == "cpu" and sample.dtype in self.dtypes and use_native():
            return self.native(sample, *rest)
        kernels = self.gpu(sample) if self.triton else None
        return (self.portable if kernels is None else kernels.run)(sample, *rest)

    def gpu(self, sample: Tensor, *_: Any) -> ModuleType | None:
        """Return the module of the Triton kernels that serve `sample`, None where others do."""
        return triton_kernels(self.name, sample.device, sample.dtype)


def define(
    schema: str,
    prepare: Callable[..., tuple[Any, ...]],
    run: Callable[..., Any],
    empty: Callable[..., Any],
    gpu: Callable[..., ModuleType | None] | None = None,
    gradients: bool = False,
) -> Callable[..., Any]:
    """Define the op `schema` (name and arguments without namespace) and return its callable overload.

    `prepare` takes the op's arguments, raises `KernelError` where they make no sense, and returns what `run` and
    `empty` take. `run` serves every real device; `empty` returns tensors like those of `run` but without their values,
    for meta and fake tensors. Without `gradients`, inputs that want a gradient are refused. `Library.impl` costs a few
    microseconds a call where `torch.library.custom_op` costs some tens.

    `gpu` gets the op's arguments and returns the module of the Triton kernels that serve them, None where others do.
    That module has `run` and the tuple `KERNELS`. While AOTAutograd traces such a call, the op is replaced by what
    `run` does: torch ops and kernels recorded through `launchable`, so that Inductor and AOTInductor compile the
    kernels into their own code. `torch.library.triton_op` does the same, but for ops that have no other path.
    """
    name = schema.split("(", 1)[0]
    qualified = f"{NAMESPACE}::{name}"

    def real(*args: Any, **kwargs: Any) -> Any:
        given = prepare(*args, **kwargs)
        if not gradients and torch.is_grad_enabled():
            check_inference(name, args)
        return run(*given)

    def fake(*args: Any, **kwargs: Any) -> Any:
        return empty(*prepare(*args, **kwargs))

    _LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,))
    _LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    if gpu is not None:
        _decompose_for(qualified, real, gpu)
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
