"""The random numbers of torch's CPU generator, made with NumPy: the same bits, without torch.

What torch does is in ATen: ``core/MT19937RNGEngine.h``, ``core/DistributionsHelper.h``,
``core/TransformationHelper.h``, ``native/cpu/DistributionTemplates.h`` and ``native/cpu/avx_mathfun.h``.

- The engine is MT19937, seeded with the low 32 bits of the seed, as NumPy seeds it.
- Uniform float32: the low 24 bits of a word, over 2 ** 24.
- Exponential: -log1p(-u) in float64, u being the low 53 bits of two words (high word first), over 2 ** 53.
- Normal, fewer than 16 numbers: Box-Muller in float64 from two such u; the second number is kept for the next draw.
- Normal, 16 numbers and more: Box-Muller in float32 on blocks of 8 + 8 uniforms; where 16 does not divide the length
  the last 16 are drawn anew. Logarithm, sine and cosine are the polynomials of cephes. Compilers turn a product and
  the sum after it into one fused operation, so the bits depend on the build of torch: those here are of torch's own
  builds for x86-64 (2.11 to 2.13, processors with AVX2). Others take another logarithm and differ in the last bits.

In float64 the functions are those of the C library in torch, and vectorised ones in NumPy, which may differ in the last
place; a result that this could round to another float32 is computed again with the C library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Singles = NDArray[np.float32]
Doubles = NDArray[np.float64]

BLOCK = 1 << 16
"""Numbers that go through the float32 functions at once, so that their temporaries stay in the cache."""
UNSURE = 16
"""Units in the last place of a float64 within which a result lies too near the middle of two float32."""

LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
LOG_LOW, LOG_HIGH = -2.12194440e-4, 0.693359375
HALF_ROOT = np.float32(0.707106781186547524)
QUARTER_TURN = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
PER_TURN = np.float32(1.27323954473516)  # 4 / pi


class Generator:
    """The stream of ``torch.Generator().manual_seed(seed)`` on the CPU."""

    def __init__(self, seed: int) -> None:
        self._engine = np.random.MT19937(0)
        # The seeding of RandomState is Knuth's, as in torch; MT19937(seed) hashes the seed first.
        state: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._engine.state = state
        self._second: float | None = None

    def _words(self, count: int) -> Words:
        words: Words = self._engine.random_raw(count)
        return words

    def _doubles(self, count: int) -> Doubles:
        """Uniform on [0, 1) with 53 bits."""
        words = self._words(2 * count)
        return ((words[0::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)) * 2.0**-53

    def uniform(self, shape: tuple[int, ...]) -> Singles:
        """``torch.rand(shape)``."""
        bits = self._words(math.prod(shape)) & np.uint64(2**24 - 1)
        return (bits.astype(np.float32) * np.float32(2.0**-24)).reshape(shape)

    def exponential(self, shape: tuple[int, ...]) -> Singles:
        """``torch.empty(shape).exponential_()``."""
        u = self._doubles(math.prod(shape))
        return _rounded(-np.log1p(-u), lambda index: -math.log1p(-u[index])).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> Singles:
        """``torch.randn(shape)``."""
        count = math.prod(shape)
        if count < 16:
            return np.array([self._one_normal() for _ in range(count)], np.float32).reshape(shape)
        uniform = self.uniform((count,))
        result = np.empty(count, np.float32)
        for begin in range(0, count - 15, BLOCK):
            end = min(begin + BLOCK, count - count % 16)
            result[begin:end] = _box_muller(uniform[begin:end])
        if count % 16:
            result[-16:] = _box_muller(self.uniform((16,)))
        return result.reshape(shape)

    def _one_normal(self) -> float:
        if self._second is not None:
            value, self._second = self._second, None
            return value + 0.0
        u1, u2 = self._doubles(2).tolist()
        radius, angle = math.sqrt(-2.0 * math.log1p(-u2)), 2.0 * math.pi * u1
        self._second = radius * math.sin(angle)
        return radius * math.cos(angle) + 0.0


def _rounded(values: Doubles, exactly: Callable[[Any], float]) -> Singles:
    """Round positive numbers to float32; those near the middle of two go through ``exactly(index)`` first."""
    rest = values.view(np.int64) & (2**29 - 1)  # what float32 has no bits for
    for index in np.nonzero(np.abs(rest - 2**28) <= UNSURE)[0]:
        values[index] = exactly(index)
    return values.astype(np.float32)


def _fused(a: Singles, b: Singles | float, c: Singles | float) -> Singles:
    """Return a * b + c with one rounding, as a fused multiply-add in float32."""
    product = a.astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)  # exact: 24 + 24 bits
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = product + addend
    # Two roundings give what one gives if the first is to odd (Boldo and Melquiond, 2008): where the sum was not exact
    # and its last bit is even, take the neighbour on the side of the error.
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0)
    bits += np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32)


def _polynomial(x: Singles, coefficients: tuple[float, ...]) -> Singles:
    value: Singles = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(value, x, coefficient)
    return value


def _log(x: Singles) -> Singles:
    """Natural logarithm of normal numbers, as ``log256_ps``."""
    bits = x.view(np.int32)
    exponent = ((bits >> 23) - 126).astype(np.float32)
    x = (bits & ~0x7F800000 | 0x3F000000).view(np.float32)  # in [0.5, 1)
    small = x < HALF_ROOT
    exponent = exponent - small.astype(np.float32)
    x = (x - np.float32(1)) + np.where(small, x, np.float32(0))
    square = x * x
    y = _polynomial(x, LOG) * x
    y = _fused(y, square, exponent * np.float32(LOG_LOW))
    y = _fused(square, -0.5, y)
    return _fused(exponent, LOG_HIGH, x + y)


def _sine_cosine(x: Singles) -> tuple[Singles, Singles]:
    """Sine and cosine of numbers from 0, as ``sincos256_ps``."""
    octant = ((x * PER_TURN).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float32)
    for part in QUARTER_TURN:
        x = _fused(y, part, x)
    square = x * x
    cosine = _polynomial(square, COSINE) * square
    cosine = _fused(cosine, square, -(square * np.float32(0.5))) + np.float32(1)
    sine = _fused(_polynomial(square, SINE) * square, x, x)
    straight = octant & 2 == 0
    return (
        _signed(np.where(straight, sine, cosine), octant & 4),
        _signed(np.where(straight, cosine, sine), ~(octant - 2) & 4),
    )


def _signed(x: Singles, flag: NDArray[np.int32]) -> Singles:
    """Change the sign where ``flag`` is 4."""
    return (x.view(np.int32) ^ (flag << 29).astype(np.int32)).view(np.float32)


def _box_muller(uniform: Singles) -> Singles:
    """Normal numbers from uniform ones; the length is a multiple of 16."""
    pairs = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - pairs[:, 0]))
    sine, cosine = _sine_cosine(np.float32(2 * math.pi) * pairs[:, 1])
    return np.stack((radius * cosine, radius * sine), axis=1).reshape(-1) + np.float32(0)  # -0 becomes 0, as in torch
