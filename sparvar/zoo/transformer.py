"""Transformer of the landscape model: cos-attention, 2-D RoPE, adaptive layer norm, KV cache."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rope_table(grid: tuple[int, int], head_dim: int, extent: tuple[float, float], base: float = 100.0) -> Tensor:
    """Rotations of a grid (h, w): [2, h*w, head_dim/2], cosines then sines.

    Coordinates are cell centres on a canvas of ``extent`` (height, width), so that a token and the
    coarser token above it stand at nearby places; half of the pairs turn with y, half with x.
    """
    pairs = head_dim // 4
    frequencies = base ** (-torch.arange(pairs) / pairs)
    y, x = (
        ((torch.arange(side) + 0.5) * (length / side))[:, None] * frequencies
        for side, length in zip(grid, extent, strict=True)
    )
    y = y[:, None, :].expand(*grid, pairs)
    x = x[None, :, :].expand(*grid, pairs)
    turn = torch.cat((y, x), dim=-1).reshape(grid[0] * grid[1], 2 * pairs)
    return torch.stack((turn.cos(), turn.sin()))


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x [B, H, L, D] by rope [2, L, D/2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rope[0], rope[1]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SelfAttention(nn.Module):
    """Cos-attention over the current scale and all before it.

    In generation (``kv_caching(True)``) one call is one scale, and keys and values of earlier
    scales are kept in ``cached_k`` and ``cached_v``; in training one call holds all scales, whose
    ends are ``ends``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.scale_log = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.max_scale_log = math.log(100.0)
        self.caching = False
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def kv_caching(self, enable: bool) -> None:
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x: Tensor, rope: Tensor, ends: tuple[int, ...] | None = None) -> Tensor:
        """x [B, L, C], rope [2, L, D/2] to [B, L, C]."""
        b, length, width = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.scale_log.clamp_max(self.max_scale_log).exp()
        q = rotate(F.normalize(q, dim=-1) * scale, rope).to(v.dtype)
        k = rotate(F.normalize(k, dim=-1), rope).to(v.dtype)
        if self.caching:
            if self.cached_k is None or self.cached_v is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
            out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        elif ends is None:
            raise ValueError("SelfAttention: ends must be given when kv_caching is off, got None")
        else:
            parts, start = [], 0
            for end in ends:
                parts.append(
                    F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale=1.0)
                )
                start = end
            out = torch.cat(parts, dim=2)
        return self.proj(out.transpose(1, 2).reshape(b, length, width))


class Block(nn.Module):
    """Attention and MLP, each modulated by the condition (adaLN, shared over blocks but for a bias)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.ada_bias = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, cond: Tensor, rope: Tensor, ends: tuple[int, ...] | None = None) -> Tensor:
        """x [B, L, C], cond [B, 6, C] to [B, L, C]."""
        width = (x.shape[-1],)
        gate1, gate2, gain1, gain2, bias1, bias2 = (cond + self.ada_bias).unsqueeze(2).unbind(1)
        h = self.attn(F.layer_norm(x, width) * (1 + gain1) + bias1, rope, ends)
        x = x + h * gate1
        h = self.fc2(F.gelu(self.fc1(F.layer_norm(x, width) * (1 + gain2) + bias2), approximate="tanh"))
        return x + h * gate2
