"""Private and version-bound names of torch and Triton that kernels, and what stands on kernels alone, depend on.

Nothing else below the compiler may use such a name. A new torch or Triton that moved one is met here:
``tests/kernels/test_torch_compat.py`` tells which. Names are looked up when they are needed, so that a missing one
stops only what uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

GLUON_VERSIONS = (["3", "6"], ["3", "7"])
"""Versions of Triton whose Gluon compiles our kernels; with others the Triton kernels run."""


def is_traced(tensor: Tensor) -> bool:
    """Whether a tensor stands for another in a trace of AOTAutograd or `torch.export`."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, FakeTensor | FunctionalTensor)


def functional_mode() -> type:
    """The dispatch mode under which AOTAutograd traces; rules for an op are registered for it."""
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    return FunctionalTensorMode


def decomposes_triton_ops() -> bool:
    """Whether the trace under way replaces ops by the Triton kernels behind them: Inductor's, not `torch.export`'s."""
    return bool(torch._functorch.config.decompose_custom_triton_ops)


def name_kernels(op: str, kernels: Sequence[Any]) -> None:
    """Put the sources of the Triton kernels behind an op (``sparvar::name``) into the key of AOTAutograd's cache."""
    from torch._library.triton import triton_ops_to_kernels

    triton_ops_to_kernels[op] = list(kernels)


def assert_on_device(condition: Tensor, text: str) -> None:
    """Assert that a tensor of one element is not 0, without waiting: the device stops where it is."""
    torch._assert_async(condition, text)


def storage_address(storage: torch.UntypedStorage) -> int:
    """The address of a storage's C++ object: equal for all views of one buffer."""
    return int(storage._cdata)


def storage_at(address: int) -> torch.UntypedStorage | None:
    """The storage of a `StorageWeakRef`'s ``cdata``, or None where nobody holds it any more."""
    found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(address)
    return found


def original_module(module: nn.Module) -> nn.Module:
    """The module inside the wrapper that `torch.compile` returned; a module that is no wrapper itself."""
    return getattr(module, "_orig_mod", module)


def silu_functions() -> tuple[Callable[..., Tensor], ...]:
    """What a graph may call for SiLU: torch's function, and the builtin below it where a tracer looked inside."""
    return F.silu, torch._C._nn.silu


def flop_counter() -> FlopCounterMode:
    """torch's counter of FLOPs, silent, which also sees the attention that CPUs run."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def gluon_source(kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], attributes: Any) -> Any:
    """What `triton.compile` takes for a Gluon kernel, as `triton.compiler.ASTSource` is for a Triton kernel."""
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource(kernel, signature, constants, attributes)


def gluon_barrier() -> Callable[..., Any]:
    """Gluon's barrier of all threads of a program: ``barrier`` since Triton 3.8, ``thread_barrier`` before."""
    import triton.experimental.gluon.language as gl

    found: Callable[..., Any] = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
    return found
