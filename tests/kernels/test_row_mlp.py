"""`row_mlp` against its float64 reference, over chunk borders, dtypes, layouts and activations."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels.row_mlp import op as row_mlp_op
from sparvar.kernels.row_mlp import reference
from tests.kernels.support import LAMBDA, OUTPUT_ROUNDING, SMALLEST, U, assert_within

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


def weights(width: int, hidden: int, out: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> Weights:
    up, down = torch.randn(hidden, width) / width**0.5, torch.randn(out, hidden) / hidden**0.5
    biases = (torch.randn(hidden).to(dtype), torch.randn(out).to(dtype)) if bias else (None, None)
    return up.to(dtype), biases[0], down.to(dtype), biases[1]


def doubled(parts: Weights) -> Weights:
    up, up_bias, down, down_bias = parts
    return (
        up.double(),
        None if up_bias is None else up_bias.double(),
        down.double(),
        None if down_bias is None else down_bias.double(),
    )


def check(x: Tensor, parts: Weights, name: str) -> None:
    actual = kernels.row_mlp(x, *parts, name)
    exact_parts = doubled(parts)
    exact = reference.run(x.double(), *exact_parts, name)
    up, up_bias, down, down_bias = exact_parts
    stored = OUTPUT_ROUNDING[x.dtype]
    # Hidden values: the first sum, its rounding to x's dtype (torch rounds between the layers) and the activation,
    # whose slope is at most 1.13 and whose own relative error is a few roundings of the sum before it.
    reach = x.double().abs() @ up.abs().t() + (0 if up_bias is None else up_bias.abs())
    hidden = 1.13 * (LAMBDA * math.sqrt(x.shape[-1]) + 12) * U * reach + 3 * stored * reach + SMALLEST[x.dtype]
    values = reference.activate(name, x.double() @ up.t() + (0 if up_bias is None else up_bias)).abs()
    bound = hidden @ down.abs().t() + (LAMBDA * math.sqrt(down.shape[1]) + 2) * U * (values @ down.abs().t())
    bound = bound + (U + stored) * (exact.abs() + (0 if down_bias is None else down_bias.abs())) + SMALLEST[x.dtype]
    assert actual.shape == exact.shape and actual.dtype == x.dtype and actual.is_contiguous()
    assert_within(actual, exact, bound)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 8 rows, so that small inputs cross their borders."""
    monkeypatch.setattr(row_mlp_op, "chunk_rows", lambda hidden, itemsize: 8)
    return 8


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_activations_and_dtypes(implementation: str, small_chunks: int, name: str, dtype: torch.dtype) -> None:
    check(torch.randn(2, 13, 24).to(dtype), weights(24, 40, 16, dtype), name)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("hidden", [1, 5, 16, 33])
def test_ragged_rows_and_widths(implementation: str, small_chunks: int, rows: int, hidden: int) -> None:
    check(torch.randn(1, rows, 8), weights(8, hidden, 5), "gelu_tanh")
    check(torch.randn(rows, 8), weights(8, hidden, 5, bias=False), "silu")


def test_large_values_saturate(implementation: str) -> None:
    """Both ends of the activations: 0 and the value itself, without overflow on the way."""
    ends = torch.tensor([[-3e4], [-200.0], [-20.0], [0.0], [20.0], [200.0], [3e4]])
    one = torch.ones(1, 1)
    for name in reference.ACTIVATIONS:
        actual = kernels.row_mlp(ends, one, None, one, None, name)
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual, reference.activate(name, ends), rtol=1e-6, atol=1e-6)


def test_strided_rows(implementation: str, small_chunks: int) -> None:
    x = torch.randn(20, 3, 24).transpose(0, 1)
    check(x, weights(24, 40, 16), "gelu_tanh")
    wide = torch.randn(3, 20, 48)[..., ::2]
    check(wide, weights(24, 40, 16), "gelu_tanh")


def test_nothing_of_freed_memory_shows(implementation: str, small_chunks: int) -> None:
    poison = [torch.full((64, 64), float("nan")) for _ in range(8)]
    del poison
    check(torch.randn(3, 11, 24), weights(24, 40, 16), "silu")


def test_chunks_hold_four_mebibytes_and_no_fewer_than_256_rows() -> None:
    assert kernels.row_mlp_rows(1024, 4) == 1024
    assert kernels.row_mlp_rows(1 << 20, 4) == 256


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: {**p, "activation": "tanh"}, "activation: must be one of gelu"),
        (lambda p: {**p, "x": torch.randn(4)}, "x: must have at least 2 dimensions"),
        (lambda p: {**p, "up": torch.randn(5, 3)}, r"up: must be \[F, C\] with C = 4"),
        (lambda p: {**p, "down": torch.randn(4, 3)}, r"down: must be \[C', F\] with F = 6"),
        (lambda p: {**p, "up_bias": torch.randn(5)}, r"up_bias: must be \[6\]"),
        (lambda p: {**p, "down": p["down"].double()}, "down: must be torch.float32 on cpu"),
    ],
)
def test_bad_arguments(change: object, text: str) -> None:
    given = {
        "x": torch.randn(2, 4),
        "up": torch.randn(6, 4),
        "up_bias": torch.randn(6),
        "down": torch.randn(4, 6),
        "down_bias": None,
        "activation": "relu",
    }
    with pytest.raises(KernelError, match=text):
        kernels.row_mlp(**change(given))  # type: ignore[operator]


def test_gradients_are_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(KernelError, match="without gradients"):
        kernels.row_mlp(x, *weights(4, 6, 4), "relu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads VmHWM of Linux")
def test_the_hidden_values_never_exist_in_full() -> None:
    code = """
import re, torch
from pathlib import Path
from sparvar import kernels
torch.set_num_threads(1)
def high(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
x, up, down = torch.randn(16384, 64), torch.randn(2048, 64), torch.randn(64, 2048)
kernels.row_mlp(x[:300], up, None, down, None, "gelu_tanh")
before = high()
kernels.row_mlp(x, up, None, down, None, "gelu_tanh")
print(high() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert int(done.stdout) < 32  # MiB; all hidden values would be 128
