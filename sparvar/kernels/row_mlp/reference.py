"""Oracle of `row_mlp`: the two layers over all rows at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


def activate(name: str, hidden: Tensor) -> Tensor:
    """Return the activation `name` of `hidden`."""
    if name == "gelu":
        return F.gelu(hidden)
    if name == "gelu_tanh":
        return F.gelu(hidden, approximate="tanh")
    return F.silu(hidden) if name == "silu" else F.relu(hidden)


def run(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, name: str) -> Tensor:
    """Return `linear(activation(linear(x, up, up_bias)), down, down_bias)`."""
    return F.linear(activate(name, F.linear(x, up, up_bias)), down, down_bias)
