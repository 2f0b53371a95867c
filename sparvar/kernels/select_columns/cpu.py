"""`select_columns` on the native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.binding import call


def run(sums: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B, H, G, kept] and counts int32 [B, H, G]."""
    sums = sums.contiguous()
    indices = sums.new_empty((*sums.shape[:3], kept), dtype=torch.int32)
    counts = sums.new_empty(sums.shape[:3], dtype=torch.int32)
    fields = (sums.data_ptr(), counts.numel(), sums.shape[3], kept, indices.data_ptr(), counts.data_ptr())
    call("sparvar_select", (*fields, torch.get_num_threads()))
    return indices, counts
