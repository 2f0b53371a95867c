"""The Triton kernel of `attention_stats`, interpreted, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparvar.kernels.attention_stats import gpu, reference
from sparvar.kernels.common.blocks import Block
from tests.kernels.support import DTYPES, HEAD_DIMS, U, assert_corrected, assert_stats, assert_within, qkv, triton_bound


def check(q: Tensor, k: Tensor, v: Tensor, scale: float, block: Block | None = None) -> None:
    out, *stats = gpu.run(q, k, v, scale, block)
    exact, *exact_stats = reference.run(q.double(), k.double(), v.double(), scale)
    mixed = reference.run(q.double(), k.double(), v.double().abs(), scale)[0]
    assert out.dtype == q.dtype
    assert_corrected(out, exact, triton_bound(q, k, v, scale, exact, mixed, k.shape[2]), None)
    assert_stats((stats[0], stats[1]), (exact_stats[0], exact_stats[1]), q, k, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_head_dims_and_dtypes(dim: int, dtype: torch.dtype) -> None:
    check(*qkv(1, 2, 77, 135, dim, dtype), dim**-0.5)


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys"),
    [(1, 1, 1, 1), (1, 1, 1, 300), (2, 3, 16, 16), (2, 2, 129, 7), (1, 1, 130, 127), (1, 2, 65, 128), (3, 1, 2, 193)],
)
def test_shapes(batch: int, heads: int, queries: int, keys: int) -> None:
    check(*qkv(batch, heads, queries, keys, 64), 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_large_logits(dtype: torch.dtype, scale: float) -> None:
    q, k, v = qkv(1, 2, 33, 200, 64, dtype, size=400.0)
    assert float((q.double() @ k.double().transpose(2, 3)).abs().max()) > 1e4
    check(q, k, v, scale)


def test_one_key_is_copied() -> None:
    q, k, v = qkv(1, 2, 40, 1, 64, size=100.0)
    out, _, entropy = gpu.run(q, k, v, 1.0)
    assert torch.equal(out, v.expand_as(out))
    assert not entropy.any()


@pytest.mark.parametrize("keys", [64, 1000])
def test_uniform_weights_have_entropy_log_t(keys: int) -> None:
    q, k, v = qkv(1, 1, 20, keys, 64)
    _, lse, entropy = gpu.run(torch.zeros_like(q), k, v, 0.125)
    assert_within(entropy, torch.full_like(entropy, math.log(keys)), 8 * U * math.log(keys))
    assert_within(lse, torch.full_like(lse, math.log(keys)), 8 * U * math.log(keys))


def test_rising_scores_move_the_maximum_in_every_step() -> None:
    q, k, v = qkv(1, 1, 5, 300, 8)
    ramp = torch.linspace(-30, 30, 300)
    check(torch.ones_like(q), (ramp / 8)[None, None, :, None].expand_as(k).contiguous(), v, 1.0)
    check(torch.ones_like(q), (-ramp / 8)[None, None, :, None].expand_as(k).contiguous(), v, 1.0)


def test_another_block_agrees() -> None:
    check(*qkv(1, 2, 70, 150, 40), 0.2, Block(16, 16, 4, 1))


def test_strided_inputs() -> None:
    q, k, v = qkv(2, 3, 40, 90, 64)
    base = gpu.run(q, k, v, 0.125)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    buffers = [torch.full((2, 3, 200, 64), float("nan")) for _ in range(2)]
    sliced = [buffer[:, :, 11 : 11 + x.shape[2]].copy_(x) for buffer, x in zip(buffers, (k, v), strict=True)]
    fused = torch.cat((q[:, :, :40], k[:, :, :40]), dim=-1)
    columns = q.transpose(2, 3).contiguous().transpose(2, 3)
    for other in ([*transposed], [q, *sliced], [fused[..., :64], k, v], [columns, k, v]):
        for x, y in zip(gpu.run(*other, 0.125), base, strict=True):
            assert torch.equal(x, y)


def test_expanded_batch() -> None:
    q, k, v = qkv(1, 2, 30, 50, 64)
    one = gpu.run(q, k, v, 0.125)
    two = gpu.run(*(x.expand(2, -1, -1, -1) for x in (q, k, v)), 0.125)
    for x, y in zip(one, two, strict=True):
        assert torch.equal(x.expand_as(y), y)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_nan_is_not_hidden(where: str) -> None:
    inputs = dict(zip("qkv", qkv(1, 1, 20, 150, 64), strict=True))
    inputs[where][0, 0, 3, 5] = float("nan")
    out, lse, entropy = gpu.run(**inputs, scale=0.125)
    assert out[0, 0, 3].isnan().any()
    if where != "v":
        assert lse[0, 0, 3].isnan() and entropy[0, 0, 3].isnan()


def test_without_entropy_the_rest_is_the_same() -> None:
    q, k, v = qkv(1, 2, 30, 150, 64)
    out, lse, _ = gpu.run(q, k, v, 0.125)
    plain, plain_lse, untouched = gpu.run(q, k, v, 0.125, entropy=False)
    assert torch.equal(plain, out) and torch.equal(plain_lse, lse) and untouched.isnan().all()
