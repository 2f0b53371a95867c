"""Oracle of `column_sparse_rows`: dense attention under an explicit mask. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_attention.reference import masked_attention
from sparvar.kernels.common.columns import Columns, KeptTokens


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, kept: KeptTokens, correction: Tensor | None = None
) -> Tensor:
    """Return [B, H, n, D] in the dtype of q."""
    batch, heads, rows, _ = q.shape
    (indices, counts), (starts, alive) = columns, kept
    allowed = torch.zeros(batch, heads, rows, k.shape[2], dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            ib, ih = b % indices.shape[0], h % indices.shape[1]
            for g in range(indices.shape[2]):
                keys = indices[ib, ih, g, : int(counts[ib, ih, g])].long()
                keys = keys if alive is None else keys[alive[keys]]
                for n in range(int(starts[g]), int(starts[g + 1])):
                    allowed[b, h, n, keys] = True
    return masked_attention(q, k, v, allowed, scale, correction)
