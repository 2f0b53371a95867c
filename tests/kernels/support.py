"""Inputs, and error bounds of fp32 kernels against float64 references.

Bounds follow the usual rounding analysis with the probabilistic constant of Higham and Mary (2019): a sum of n terms
is off by at most LAMBDA * sqrt(n) * U relative to the sum of magnitudes, but for a vanishing probability.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparvar import kernels
from sparvar.kernels import Columns, QueryTiles

U = 2.0**-24  # unit roundoff of fp32
LAMBDA = 4.0
EXP_ERROR = 4 * U  # exp2 of the native kernels: 2 ulp
OUTPUT_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2.0**-25}  # half the spacing of subnormals
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (8, 64, 96, 104, 112, 120, 128, 256)


def poison_scratch() -> None:
    """Run the native kernel over NaN on every thread, so that its scratch holds nothing useful."""
    nan = torch.full((1, 8, 256, 256), float("nan"))
    with torch.no_grad():
        kernels.attention_stats(nan, nan, nan, 1.0)


def qkv(
    batch: int, heads: int, queries: int, keys: int, dim: int, dtype: torch.dtype = torch.float32, size: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return standard normal q, k, v; `size` multiplies q."""
    q = torch.randn(batch, heads, queries, dim) * size
    return q.to(dtype), torch.randn(batch, heads, keys, dim).to(dtype), torch.randn(batch, heads, keys, dim).to(dtype)


def tiles_of(grid_h: int, grid_w: int, tile_h: int, tile_w: int) -> QueryTiles:
    """Return tiles of tile_h x tile_w queries on a grid of grid_h x grid_w."""
    return QueryTiles((grid_h, grid_w), (tile_h, tile_w))


def random_columns(batch: int, heads: int, tiles: int, keys: int, capacity: int) -> Columns:
    """Return ascending unique lists of 1 to `capacity` of `keys` keys, zeros behind them."""
    order = torch.rand(batch, heads, tiles, keys).argsort(dim=-1)[..., :capacity]
    counts = torch.randint(1, capacity + 1, (batch, heads, tiles), dtype=torch.int32)
    used = torch.arange(capacity) < counts[..., None]
    indices = order.masked_fill(~used, keys).sort(dim=-1).values
    return Columns(indices.masked_fill(~used, 0).to(torch.int32), counts)


def score_error(q: Tensor, k: Tensor, scale: float) -> float:
    """Bound of |s - s64|: the product's sum, the two roundings of the scaled q, and the shift by the maximum."""
    magnitude = float((q.double().abs() @ k.double().abs().transpose(2, 3)).max()) * abs(scale)
    peak = float((q.double() @ k.double().transpose(2, 3)).abs().max()) * abs(scale)
    return U * ((LAMBDA * math.sqrt(q.shape[-1]) + 3) * magnitude + 2 * peak)


def weight_error(q: Tensor, k: Tensor, scale: float) -> float:
    """Bound of the relative error of exp(s - m)."""
    return math.expm1(score_error(q, k, scale)) + EXP_ERROR


def attention_bound(q: Tensor, k: Tensor, v: Tensor, scale: float, exact: Tensor) -> Tensor:
    """Elementwise bound of |out - exact|: weights in numerator and denominator, two sums over keys, the output."""
    relative = 2 * weight_error(q, k, scale) + (2 * LAMBDA * math.sqrt(k.shape[2]) + 4) * U
    return relative * float(v.double().abs().max()) + OUTPUT_ROUNDING[q.dtype] * exact.abs() + SMALLEST[q.dtype]


def assert_within(actual: Tensor, exact: Tensor, bound: Tensor | float) -> None:
    """Every element of `actual` is within `bound` of `exact`; NaN is not."""
    error = (actual.double() - exact.double()).abs()
    good = error <= bound
    if not bool(good.all()):
        excess = float((error / bound).nan_to_num(nan=math.inf).max())
        raise AssertionError(f"{int((~good).sum())} of {good.numel()} elements off, worst {excess:.3g} times the bound")


def assert_stats(
    found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], q: Tensor, k: Tensor, scale: float
) -> None:
    """Log-sum-exp and entropy are those of float64: sums of weights that are never rounded to 16 bits."""
    (lse, entropy), (exact_lse, exact_entropy) = found, exact
    assert lse.dtype == entropy.dtype == torch.float32
    rounding = (LAMBDA * math.sqrt(k.shape[2]) + 4) * U
    assert_within(lse, exact_lse, score_error(q, k, scale) + weight_error(q, k, scale) + rounding + U * exact_lse.abs())
    # H = log l + sum p (m - s): a relative error e of the weights moves both by e times their size, and an error of
    # the scores moves the second by as much.
    spread = float((exact_lse[..., None] - q.double() @ k.double().transpose(2, 3) * scale).max())
    bound = 2 * (weight_error(q, k, scale) + rounding) * (1 + spread) + score_error(q, k, scale)
    assert_within(entropy, exact_entropy, bound)


def assert_corrected(out: Tensor, exact: Tensor, bound: Tensor, correction: Tensor | None) -> Tensor:
    """Return `out`, [B, N, H, D] in memory, within `bound` of `exact`; adding a correction in fp32 errs once more."""
    assert out.transpose(1, 2).is_contiguous()
    if correction is not None:
        bound = bound + 2.0**-23 * (exact.abs() + correction.double().abs())
    assert_within(out, exact, bound)
    return out


# Triton kernels round the weights to the dtype of v before the product, as tensor cores take both operands in it.
# The interpreter truncates where GPUs round to nearest, which is twice as far for bfloat16 (Triton 3.6 and 3.7).
TRITON_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}


def triton_bound(q: Tensor, k: Tensor, v: Tensor, scale: float, exact: Tensor, mixed: Tensor, kept: int) -> Tensor:
    """Elementwise bound of |out - exact| for Triton kernels: `attention_bound`, and the rounding of weights.

    `mixed` is what the reference gives for |v|. A rounded weight is off by its unit roundoff, which makes
    u * sum p |v| of it; in float16 weights below 2^-14 are off by half the spacing of subnormals instead, each, and
    the largest weight being 1 their sum is not below it.
    """
    bound = attention_bound(q, k, v, scale, exact) - OUTPUT_ROUNDING[q.dtype] * exact.abs()
    bound = bound + TRITON_ROUNDING[q.dtype] * exact.abs()
    if q.dtype != torch.float32:
        bound = bound + TRITON_ROUNDING[q.dtype] * (1 + weight_error(q, k, scale)) * mixed
        bound = bound + SMALLEST[q.dtype] * kept * float(v.double().abs().max())
    return bound * (1 + TRITON_ROUNDING[q.dtype])


# The head of a script with a fake GPU: fake tensors say that they are on one, and Triton compiles for sm_90 as far as
# its first stage, from which torch reads what a kernel writes to.
FAKE_GPU = """
import contextlib, torch, triton
from torch._functorch import config
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from sparvar import kernels
from sparvar.kernels.common import gpu


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


triton.runtime.driver.set_active(Driver())
gpu._obstacle = lambda index: ""

"""
