"""Oracle of `column_sparse_rows`: dense attention under an explicit mask. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["run"]


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    starts: Tensor,
    scale: float,
    alive: Tensor | None = None,
    correction: Tensor | None = None,
) -> Tensor:
    """Return [B, H, n, D] in the dtype of q."""
    batch, heads, rows, _ = q.shape
    allowed = torch.zeros(batch, heads, rows, k.shape[2], dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            ib, ih = b % indices.shape[0], h % indices.shape[1]
            for g in range(indices.shape[2]):
                keys = indices[ib, ih, g, : int(counts[ib, ih, g])].long()
                keys = keys if alive is None else keys[alive[keys]]
                for n in range(int(starts[g]), int(starts[g + 1])):
                    allowed[b, h, n, keys] = True
    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) * scale
    scores = scores.masked_fill(~allowed.to(q.device), float("-inf"))
    out = torch.einsum("bhnt,bhtd->bhnd", torch.softmax(scores, dim=-1), v)
    return out if correction is None else out + correction
