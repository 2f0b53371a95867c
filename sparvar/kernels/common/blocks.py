"""How the Triton kernels are launched: blocks, operands and what a device is. Imports Triton."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

LOG2E = 1.4426950408889634  # exponentials are powers of two on GPUs
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
