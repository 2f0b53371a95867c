"""What the Triton kernels share: blocks of queries and of rows, and the host's side of both. Imports Triton."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "BITS",
    "LOG2E",
    "NATS",
    "Block",
    "block_dim",
    "block_queries",
    "interpreted",
    "operand",
    "sm_90",
    "tile_rows",
]

LOG2E = 1.4426950408889634  # exponentials are powers of two on GPUs
BITS = tl.constexpr(LOG2E)  # per nat; kernels read no other kind of global
NATS = tl.constexpr(1 / LOG2E)  # per bit
STEP = 8  # elements in 16 bytes of a 16-bit dtype
MAX_SPAN = 2**31  # offsets within a head are int32


class Block(NamedTuple):
    """How a kernel is launched: queries and keys of one block, warps, stages of the software pipeline."""

    m: int
    n: int
    warps: int
    stages: int


@lru_cache(maxsize=16)
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index) if torch.version.hip is None else (0, 0)


def sm_90(device: torch.device) -> bool:
    """Return whether `device` is an NVIDIA GPU of compute capability 9.0 that is there: Hopper has its own choices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return _capability(torch.cuda.current_device() if device.index is None else device.index) == (9, 0)


def block_dim(dim: int) -> int:
    """Return the power of two that holds a head dimension. Tensor cores take at least 16."""
    return max(16, int(triton.next_power_of_2(dim)))


def interpreted(kernel: Any) -> bool:
    """Return whether `kernel` runs under Triton's interpreter, which multiplies no bfloat16."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def block_queries(most: int, queries: int) -> int:
    """Return the block of queries for a tile: at most `most`, a power of two, at least 16."""
    return min(most, max(16, int(triton.next_power_of_2(queries))))


def operand(x: Tensor) -> tuple[Tensor, int, int, int]:
    """Return x [B, H, L, D] and its strides (batch row, head, token) in units of 8 elements.

    The unit tells the compiler that rows start at multiples of 16 bytes, for any head dimension. Views of which that
    is not true, whose rows are not contiguous or that spread a head over 2**31 elements are copied.
    """
    apart = [stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
    if x.stride(3) != 1 or any(stride % STEP for stride in apart) or x.shape[2] * x.stride(2) >= MAX_SPAN:
        x = x.contiguous()
    batch, head, token = x.stride()[:3]
    return x, batch // STEP, head // STEP, token // STEP


@triton.jit
def tile_rows(tile, part, grid_h, grid_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the tokens [BM] of part `part` of a query tile and which of them exist; others are token 0."""
    across = tl.cdiv(grid_w, TILE_W)
    slot = part * BLOCK_M + tl.arange(0, BLOCK_M)
    y = (tile // across) * TILE_H + slot // TILE_W
    x = (tile % across) * TILE_W + slot % TILE_W
    exists = (slot < TILE_H * TILE_W) & (y < grid_h) & (x < grid_w)
    return tl.where(exists, y * grid_w + x, 0), exists
