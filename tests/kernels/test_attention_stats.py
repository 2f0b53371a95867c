"""`attention_stats` against its float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels.attention_stats import reference
from tests.kernels.support import (
    DTYPES,
    HEAD_DIMS,
    U,
    assert_corrected,
    assert_stats,
    assert_within,
    attention_bound,
    qkv,
)


def check(q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    out, *stats = kernels.attention_stats(q, k, v, scale)
    exact, *exact_stats = reference.run(q.double(), k.double(), v.double(), scale)
    assert out.dtype == q.dtype
    assert_corrected(out, exact, attention_bound(q, k, v, scale, exact), None)
    assert_stats((stats[0], stats[1]), (exact_stats[0], exact_stats[1]), q, k, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(implementation: str, dim: int, dtype: torch.dtype) -> None:
    check(*qkv(1, 2, 77, 135, dim, dtype), dim**-0.5)


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"),
    [(1, 1, 1, 1), (1, 1, 1, 500), (2, 3, 16, 16), (2, 2, 129, 7), (1, 1, 300, 127), (1, 2, 65, 126), (3, 1, 2, 253)],
)
def test_shapes(implementation: str, batch: int, heads: int, queries: int, keys: int) -> None:
    check(*qkv(batch, heads, queries, keys, 64), 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(implementation: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(1, 2, 33, 200, 64, dtype, size=400.0)
    scores = q.double() @ k.double().transpose(2, 3)
    assert float(scores.abs().max()) > 1e4
    check(q, k, v, 1.0)


def test_one_key_is_copied(implementation: str) -> None:
    q, k, v = qkv(1, 2, 40, 1, 64, size=100.0)
    out, _, entropy = kernels.attention_stats(q, k, v, 1.0)
    assert torch.equal(out, v.expand_as(out))
    assert not entropy.any()


def test_uniform_weights_have_entropy_log_t(implementation: str) -> None:
    q, k, v = qkv(1, 1, 20, 1000, 64)
    _, lse, entropy = kernels.attention_stats(torch.zeros_like(q), k, v, 1.0)
    assert_within(entropy, torch.full_like(entropy, math.log(1000)), 8 * U * math.log(1000))
    assert_within(lse, torch.full_like(lse, math.log(1000)), 8 * U * math.log(1000))


def test_rising_scores_move_the_maximum_in_every_chunk(implementation: str) -> None:
    q, k, v = qkv(1, 1, 5, 1000, 8)
    ramp = torch.linspace(-30, 30, 1000)
    check(torch.ones_like(q), (ramp / 8)[None, None, :, None].expand_as(k).contiguous(), v, 1.0)
    check(torch.ones_like(q), (-ramp / 8)[None, None, :, None].expand_as(k).contiguous(), v, 1.0)


def test_strided_inputs(implementation: str) -> None:
    q, k, v = qkv(2, 3, 40, 90, 64)
    base = kernels.attention_stats(q, k, v, 0.125)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    buffers = [torch.full((2, 3, 200, 64), float("nan")) for _ in range(2)]
    sliced = [buffer[:, :, 11 : 11 + x.shape[2]].copy_(x) for buffer, x in zip(buffers, (k, v), strict=True)]
    fused = torch.cat((q[:, :, :40], k[:, :, :40]), dim=-1)
    columns = q.transpose(2, 3).contiguous().transpose(2, 3)
    for other in ([*transposed], [q, *sliced], [fused[..., :64], k, v], [columns, k, v]):
        for x, y in zip(kernels.attention_stats(*other, 0.125), base, strict=True):
            assert torch.equal(x, y)


def test_expanded_batch(implementation: str) -> None:
    q, k, v = qkv(1, 2, 30, 50, 64)
    one = kernels.attention_stats(q, k, v, 0.125)
    two = kernels.attention_stats(*(x.expand(2, -1, -1, -1) for x in (q, k, v)), 0.125)
    for x, y in zip(one, two, strict=True):
        assert torch.equal(x.expand_as(y), y)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_is_not_hidden(implementation: str, where: str) -> None:
    inputs = dict(zip("qkv", qkv(1, 1, 20, 150, 64), strict=True))
    inputs[where][0, 0, 3, 5] = float("nan")
    out = kernels.attention_stats(**inputs, scale=0.125)[0]
    assert out[0, 0, 3].isnan().any()


def test_float64_takes_the_portable_path(implementation: str) -> None:
    q, k, v = (x.double() for x in qkv(1, 2, 30, 50, 64))
    out, _, _ = kernels.attention_stats(q, k, v, 0.125)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, reference.run(q, k, v, 0.125)[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda q, k, v: (q[0], k, v), "q: must have 4 dimensions [B, H, N, D], got [2, 4, 16]"),
        (lambda q, k, v: (q[..., :12], k, v), "head dimension that is a multiple of 8 up to 256, got 12"),
        (lambda q, k, v: (q, k[:, :1], v), "k: must be [B, H, T, D] = [1, 2, T, 16], got [1, 1, 6, 16]"),
        (lambda q, k, v: (q, k, v[:, :, :5]), "with T = 6 as in k, got [1, 2, 5, 16]"),
        (lambda q, k, v: (q, k.half(), v), "k: must have the dtype of q, torch.float32, got torch.float16"),
        (lambda q, k, v: (q.int(), k, v), "q: must be float32, bfloat16, float16 or float64, got torch.int32"),
        (lambda q, k, v: (q[:, :, :0], k, v), "q: must not be empty, got [1, 2, 0, 16]"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "k: must hold at least one key"),
        (lambda q, k, v: (q, k, v.to("meta")), "v: must be on the device of q, cpu, got meta"),
        (lambda q, k, v: (q.requires_grad_(), k, v), "must be called without gradients"),
    ],
)
def test_errors(change, text: str) -> None:
    with pytest.raises(KernelError) as caught:
        kernels.attention_stats(*change(*qkv(1, 2, 4, 6, 16)), 0.25)
    assert text in str(caught.value)
