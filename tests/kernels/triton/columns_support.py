"""Where the column kernels run in these tests: interpreted on CPU tensors, or compiled where that is not asked for."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
POISON = -(2**31) + 77


def run_poisoned(run: Callable[..., tuple[Tensor, Tensor]], *arguments: object) -> tuple[Tensor, Tensor]:
    """Call `run`, tensors among its arguments on the device, and return its lists and counts on the CPU.

    Fresh integers are the largest, as the fixture of this folder sees to.
    """
    assert torch.empty(1, dtype=torch.int32, device=DEVICE).item() == 2**31 - 1
    indices, counts = run(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in arguments))
    assert indices.dtype == counts.dtype == torch.int32
    assert indices.is_contiguous() and counts.is_contiguous()
    return indices.cpu(), counts.cpu()
