"""`attention_stats` in torch ops, on any device: blocks of queries, so that scores stay small."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.checks import attention_output

BLOCK = 512


def run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse, entropy. Arithmetic in fp32, or float64 for float64 inputs."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = k.to(wide).transpose(2, 3), v.to(wide)
    out = attention_output(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    entropy = torch.empty_like(lse)
    for first in range(0, q.shape[2], BLOCK):
        block = slice(first, first + BLOCK)
        scores = (q[:, :, block].to(wide) * scale) @ keys  # [B, H, block, T]
        peak = scores.amax(dim=-1, keepdim=True)
        shifted = scores - peak
        weights = shifted.exp()
        total = weights.sum(dim=-1, keepdim=True)
        out[:, :, block] = ((weights @ values) / total).to(q.dtype)
        log_total = total.log()
        lse[:, :, block] = (peak + log_total).squeeze(-1).float()
        energy = (weights * shifted).sum(dim=-1, keepdim=True) / total
        entropy[:, :, block] = (log_total - energy).squeeze(-1).clamp_min(0.0).float()
    return out, lse, entropy
