"""Oracle of `attention_stats`: the definitions, with the whole probability matrix. Use it in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return out [B, H, N, D], lse and entropy [B, H, N] in the dtype of q."""
    scores = torch.einsum("bhnd,bhtd->bhnt", q, k) * scale
    probabilities = torch.softmax(scores, dim=-1)
    out = torch.einsum("bhnt,bhtd->bhnd", probabilities, v)
    return out, torch.logsumexp(scores, dim=-1), -torch.special.xlogy(probabilities, probabilities).sum(dim=-1)
