"""Oracle of `kv_acquire` and `kv_extend`: `torch.cat`."""

from __future__ import annotations

import torch
from torch import Tensor


def run(previous: Tensor, new: Tensor, dim: int) -> Tensor:
    """Return both, one behind the other."""
    return torch.cat((previous, new), dim=dim)
