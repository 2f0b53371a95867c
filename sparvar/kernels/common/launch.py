"""Launching Triton kernels on the device of their operands."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.library import launchable


def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **options: Any) -> None:
    """Run `kernel` on `grid`, on the device of its first operand: Triton by itself takes the current device.

    While that operand is traced, the launch is recorded instead.
    """
    sample: Tensor = operands[0]
    launcher = launchable(kernel, sample)
    with torch.cuda.device_of(sample) if launcher is kernel else nullcontext():
        launcher[grid](*operands, **options)
