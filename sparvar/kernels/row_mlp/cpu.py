"""Bias and activation of a chunk on the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import call

FUSED = ("gelu_tanh", "silu")


def bias_activation(name: str, hidden: Tensor, bias: Tensor | None) -> None:
    """Replace `hidden`, fp32 [rows, F] contiguous, by the activation of `hidden + bias`; `bias` is contiguous."""
    pointer = 0 if bias is None else bias.data_ptr()
    fields = (hidden.data_ptr(), pointer, *hidden.shape, int(name == "gelu_tanh"))
    call("sparvar_bias_activation", (*fields, torch.get_num_threads()))
