"""Every private name of torch and Triton that kernels depend on: a failure says which moved, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparvar.kernels.common import torch_compat
from tests.compat import name_stands, untried

KEEPER = "sparvar.kernels.common.torch_compat"


def stands(name: str, function: str, use: str) -> Any:
    return name_stands(name, f"{KEEPER}.{function}", use)


def test_every_name_is_tried_here() -> None:
    missing = untried(torch_compat.__file__, __file__)
    assert not missing, f"{KEEPER} uses {', '.join(missing)}: try each in a test of this file"


def test_a_name_that_moved_is_reported_with_version_and_remedy() -> None:
    says = rf"torch\._nothing is not what it was: torch {torch.__version__.split('+')[0]}.*change {KEEPER}\.f, which"
    with pytest.raises(pytest.fail.Exception, match=says), stands("torch._nothing", "f", "do nothing"):
        torch._nothing  # type: ignore[attr-defined]  # noqa: B018


def test_fake_tensor() -> None:
    with stands("torch._subclasses.fake_tensor.FakeTensor", "is_traced", "tell traced tensors from real ones"):
        with torch._subclasses.FakeTensorMode():
            fake = torch.ones(2)
        assert torch_compat.is_traced(fake) and not torch_compat.is_traced(torch.ones(2))


def test_functional_tensor() -> None:
    name = "torch._subclasses.functional_tensor.FunctionalTensor"
    with stands(name, "is_traced", "tell traced tensors from real ones"), torch_compat.functional_mode()():
        assert torch_compat.is_traced(torch.ones(2))


def test_functional_tensor_mode() -> None:
    name = "torch._subclasses.functional_tensor.FunctionalTensorMode"
    with stands(name, "functional_mode", "register how an op is traced"):
        library = torch.library.Library("sparvar_compat", "FRAGMENT")
        library.define("f(Tensor x) -> Tensor")
        seen: list[object] = []

        def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            seen.append(op)
            return args[0]

        torch.library.register_torch_dispatch("sparvar_compat::f", torch_compat.functional_mode(), rule, lib=library)
        with torch_compat.functional_mode()():
            torch.ops.sparvar_compat.f(torch.ones(2))
        assert seen == [torch.ops.sparvar_compat.f.default]


def test_decompose_custom_triton_ops() -> None:
    name = "torch._functorch.config.decompose_custom_triton_ops"
    with stands(name, "decomposes_triton_ops", "keep ops whole in exported programs and replace them in Inductor's"):
        for wanted in (True, False):
            with torch._functorch.config.patch(decompose_custom_triton_ops=wanted):
                assert torch_compat.decomposes_triton_ops() is wanted


def test_triton_ops_to_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch._library.triton.triton_ops_to_kernels"
    with stands(name, "name_kernels", "put kernels' sources into the key of AOTAutograd's cache"):
        from torch._library import triton

        monkeypatch.setattr(triton, "triton_ops_to_kernels", {})
        torch_compat.name_kernels("sparvar::f", (1, 2))
        assert triton.get_triton_kernels_for_op("sparvar::f") == [1, 2]


def test_assert_async() -> None:
    with stands("torch._assert_async", "assert_on_device", "check lists of columns without waiting for a GPU"):
        torch_compat.assert_on_device(torch.ones(1), "good")
        with pytest.raises(RuntimeError, match="counts: must be"):
            torch_compat.assert_on_device(torch.zeros(1), "counts: must be")


def test_cdata_and_new_with_weak_ptr() -> None:
    from torch.multiprocessing.reductions import StorageWeakRef

    tensor = torch.arange(6.0)
    with stands("torch.UntypedStorage._cdata", "storage_address", "find the buffer of a cache by a view of it"):
        address = torch_compat.storage_address(tensor.untyped_storage())
        assert address == torch_compat.storage_address(tensor[2:].untyped_storage()) != 0
    with stands("torch.UntypedStorage._new_with_weak_ptr", "storage_at", "open a buffer that is held weakly"):
        weak = StorageWeakRef(tensor.untyped_storage())
        found = torch_compat.storage_at(weak.cdata)
        assert found is not None and torch_compat.storage_address(found) == address
        del tensor, found
        assert torch_compat.storage_at(weak.cdata) is None


def test_silu() -> None:
    x = torch.randn(3)
    with stands("torch._C._nn.silu", "silu_functions", "find SiLU in a graph of a tracer that looked inside"):
        function, builtin = torch_compat.silu_functions()
        assert function is F.silu and builtin is not function
        torch.testing.assert_close(builtin(x), F.silu(x))


def test_orig_mod() -> None:
    module = nn.Linear(2, 2)
    with stands("torch._dynamo.eval_frame.OptimizedModule._orig_mod", "original_module", "find an attached model"):
        assert torch_compat.original_module(torch.compile(module, backend="eager")) is module  # type: ignore[arg-type]
    assert torch_compat.original_module(module) is module


def test_attention_of_cpus() -> None:
    q, k = torch.zeros(2, 3, 8, 16), torch.zeros(2, 3, 12, 16)
    name = "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu"
    with stands(name, "flop_counter", "count the FLOPs of attention on CPUs"):
        with torch_compat.flop_counter() as counter, torch.no_grad():
            F.scaled_dot_product_attention(q, k, k)
        assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 8 * 12 * 16


def test_gluon_source() -> None:
    pytest.importorskip("triton.experimental.gluon")
    from sparvar.kernels.column_sparse_attention.hopper import column_sparse_hopper_kernel as kernel

    name = "triton.experimental.gluon._runtime.GluonASTSource"
    with stands(name, "gluon_source", "compile the kernel for Hopper where there is no GPU"):
        source = torch_compat.gluon_source(kernel, dict.fromkeys(kernel.arg_names, "i32"), {}, {})
        assert source.fn is kernel


def test_gluon_barrier() -> None:
    pytest.importorskip("triton.experimental.gluon")
    name = "triton.experimental.gluon.language.barrier"
    with stands(name, "gluon_barrier", "let the threads of the kernel for Hopper wait for each other"):
        assert callable(torch_compat.gluon_barrier())
