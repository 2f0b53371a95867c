"""What torch.compile and export rely on: `opcheck`, layouts of fakes, compiled graphs, cost of a call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from sparvar import kernels
from sparvar.errors import KernelError
from tests.kernels.support import qkv, random_columns, tiles_of


def cases() -> dict[str, tuple[Any, ...]]:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(2, 3, 24, 40, 16))
    indices, counts = random_columns(2, 1, 2, 40, 12)
    lse = torch.randn(2, 3, 24)
    cache = torch.randn(2, 3, 5, 8)
    return {
        "attention_stats": (q, k, v, 0.25),
        "column_sums": (q, k, lse, 0.25, 4, 6, 2, 6, 2),
        "select_columns": (torch.rand(2, 3, 4, 50), 7),
        "map_columns": (*random_columns(1, 3, 4, 21, 9), [1, 2, 4, 6], [1, 2, 4, 6], 0, 3, 4, 2, 2, "footprint", 1, 3),
        "local_columns": ([1, 2, 4, 6], [1, 2, 4, 6], 0, 4, 2, 3, [0, 0, 3, 5], 1, torch.device("cpu")),
        "column_sparse_attention": (q, k, v, indices, counts, 0.25, 4, 6, 2, 6, torch.randn(2, 3, 24, 16)),
        "row_mlp": (torch.randn(2, 7, 16), torch.randn(24, 16), torch.randn(24), torch.randn(8, 24), None, "gelu_tanh"),
        "kv_acquire": (cache, 32, 2),
        "kv_extend": (torch.randn(2, 3, 4, 8), kernels.kv_acquire(cache, 32, 2), 5, 32, 2),
    }


NAMES = tuple(cases())


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(implementation: str, name: str) -> None:
    tests: tuple[str, ...] = ("test_schema", "test_autograd_registration", "test_faketensor")
    if name != "kv_acquire":  # its token is a name, so two calls never agree
        tests = (*tests, "test_aot_dispatch_dynamic")
    arguments = cases()[name]
    torch.library.opcheck(getattr(torch.ops.sparvar, name).default, arguments, test_utils=tests)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fakes_have_the_real_layout(implementation: str, name: str, dtype: torch.dtype) -> None:
    arguments = cases()[name]
    if name in ("attention_stats", "column_sparse_attention", "row_mlp"):
        floats = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in arguments]
        arguments = tuple(x.to(dtype) if is_float else x for x, is_float in zip(arguments, floats, strict=True))
    op = getattr(torch.ops.sparvar, name).default
    real = op(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments))
    for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (real, fake)), strict=True):
        assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_compiled_graph_agrees(backend: str, mode: Any) -> None:
    def forward(x: torch.Tensor, cached_k: torch.Tensor, cached_v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new = (x + 1).view(2, 24, 3, 16).transpose(1, 2)
        grown = []
        for cache in (cached_k, cached_v):
            token = kernels.kv_acquire(cache, 80, 2)
            grown.append(kernels.kv_extend(new, token, 16, 80, 2))
        q = (x * 2).view(2, 24, 3, 16).transpose(1, 2)
        out, lse, entropy = kernels.attention_stats(q, *grown, 0.25)
        sums = kernels.column_sums(q, grown[0], lse, 0.25, tiles_of(4, 6, 2, 6))
        columns = kernels.select_columns(sums, 20)
        sparse = kernels.column_sparse_attention(q, *grown, columns, 0.25, tiles_of(4, 6, 2, 6), out)
        return sparse.transpose(1, 2).reshape(2, 24, 48) * 2, entropy + 1, *grown

    with mode():
        inputs = torch.randn(2, 24, 48), torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
        expected = forward(*inputs)
        actual = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)(*inputs)
        for x, y in zip(expected, actual, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_compiled_code_reports_errors_while_tracing() -> None:
    def forward(q: torch.Tensor) -> torch.Tensor:
        return kernels.attention_stats(q, q, q, 1.0)[0]

    with pytest.raises(Exception, match="head dimension that is a multiple of 8") as caught:
        torch.compile(forward, backend="aot_eager", fullgraph=True)(torch.randn(1, 1, 4, 12))
    chain, seen = caught.value, []
    while chain is not None:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__  # type: ignore[assignment]
    assert any(isinstance(error, KernelError) for error in seen)


def test_meta_tensors_run_the_fake() -> None:
    q, k, v = (x.to("meta") for x in qkv(1, 2, 8, 12, 16))
    assert [x.device.type for x in kernels.attention_stats(q, k, v, 0.25)] == ["meta"] * 3
    windows = kernels.LocalWindows(kernels.Schedule((1, 2), (1, 2)), 2, (2, 2), (0, 3), 1)
    indices, _ = kernels.local_columns(windows, "meta")
    assert indices.device.type == "meta"


def test_the_ops_register_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch, sparvar.kernels as k; "
        "assert hasattr(torch.ops.sparvar, 'column_sparse_attention'); "
        "k.attention_stats(*(torch.zeros(1, 1, 8, 8) for _ in range(3)), 1.0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
