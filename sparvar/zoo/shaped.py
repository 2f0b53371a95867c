"""A transformer of a published VAR model's shape with random weights, to measure what size does.

Its images would be noise, so it draws none: one pass over all scales, as generation makes it. Attention of random
weights is nearly uniform, which says nothing about fidelity; times, memory and traffic are those of the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.zoo.transformer import rotate


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer: width C, blocks, heads of ``head_dim``, text tokens of cross-attention (0: none)."""

    width: int
    depth: int
    heads: int
    text: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


SHAPES = {
    "infinity-2b": Shape(2048, 32, 16, 64),
    "infinity-8b": Shape(3584, 40, 28, 64),
    "infinity-125m": Shape(768, 12, 8, 64),
    "tiny": Shape(128, 3, 2, 8),
}
"""Infinity's sizes as its repository states them; ``tiny`` is for tests."""

SCHEDULE_1M = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))


def _rope(h: int, w: int, head_dim: int, extent: tuple[int, int]) -> Tensor:
    """Rotations of an h x w grid on a canvas of ``extent``: [2, h*w, head_dim/2], cosines then sines."""
    pairs = head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(pairs) / pairs)
    y = (torch.arange(h) * (extent[0] / h))[:, None] * frequencies
    x = (torch.arange(w) * (extent[1] / w))[:, None] * frequencies
    both = (y[:, None].expand(h, w, pairs), x[None].expand(h, w, pairs))
    angles = torch.cat(both, dim=-1).reshape(h * w, 2 * pairs)
    return torch.stack((angles.cos(), angles.sin()))


class ShapedSelfAttention(nn.Module):
    """Cos-attention over this scale and all before it, with the caches of the public models."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        self.temperature = nn.Parameter(torch.full((1, shape.heads, 1, 1), 4.0))
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x [B, L, C], rope [2, L, D/2] to [B, L, C]."""
        b, length, width = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = rotate(F.normalize(q, dim=-1) * self.temperature, rope).to(v.dtype)
        k = rotate(F.normalize(k, dim=-1), rope).to(v.dtype)
        if self.cached_k is None or self.cached_v is None:
            self.cached_k, self.cached_v = k, v
        else:
            k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
            v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(b, length, width))


class ShapedCrossAttention(nn.Module):
    """Attention to the text."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.q = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.width, 2 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, L, C], text [B, T, C] to [B, L, C]."""
        b, length, width = x.shape
        q = self.q(x).view(b, length, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(text).view(b, text.shape[1], 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, length, width))


class ShapedBlock(nn.Module):
    """Self-attention, cross-attention where there is text, and MLP, modulated by the condition."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sa = ShapedSelfAttention(shape)
        self.ca = ShapedCrossAttention(shape) if shape.text else None
        self.fc1 = nn.Linear(shape.width, 4 * shape.width)
        self.fc2 = nn.Linear(4 * shape.width, shape.width)
        self.bias = nn.Parameter(torch.zeros(6, shape.width))

    def forward(self, x: Tensor, condition: Tensor, rope: Tensor, text: Tensor) -> Tensor:
        """x [B, L, C], condition [B, 6, C], text [B, T, C] to [B, L, C]."""
        width = (x.shape[-1],)
        gate1, gate2, gain1, gain2, bias1, bias2 = (condition + self.bias).unsqueeze(2).unbind(1)
        x = x + self.sa(F.layer_norm(x, width) * (1 + gain1) + bias1, rope) * gate1
        if self.ca is not None:
            x = x + self.ca(F.layer_norm(x, width), text)
        hidden = F.gelu(self.fc1(F.layer_norm(x, width) * (1 + gain2) + bias2), approximate="tanh")
        return x + self.fc2(hidden) * gate2


class ShapedVAR(nn.Module):
    """Blocks over a schedule; :meth:`generate` is one generation without tokenizer and sampling."""

    def __init__(self, shape: Shape, schedule: tuple[tuple[int, int], ...] = SCHEDULE_1M) -> None:
        super().__init__()
        self.shape, self.schedule = shape, schedule
        self.blocks = nn.ModuleList(ShapedBlock(shape) for _ in range(shape.depth))
        self._ropes = [_rope(h, w, shape.head_dim, schedule[-1]) for h, w in schedule]

    @torch.inference_mode()
    def generate(self, rows: int = 1, seed: int = 0, guided: bool = True) -> Tensor:
        """Run all scales on random tokens; returns those of the last scale [rows or 2 rows, N, C].

        ``guided`` doubles the rows, as classifier-free guidance does: the same tokens with another condition and text.
        """
        return self.through(len(self.schedule), rows, seed, guided)

    @torch.inference_mode()
    def through(
        self,
        last: int,
        rows: int = 1,
        seed: int = 0,
        guided: bool = True,
        on_scale: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """What `generate` runs, ended after scale ``last`` (from 1); ``on_scale`` gets every scale and its output."""
        weight = next(self.parameters())
        device, dtype = weight.device, weight.dtype
        generator = torch.Generator(device).manual_seed(seed)

        def noise(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=dtype)

        b, width = rows * (2 if guided else 1), self.shape.width
        condition, text = noise(b, 6, width) * 0.1, noise(b, max(1, self.shape.text), width)
        x = text[:, :0]
        self.clear()
        for scale, (h, w) in enumerate(self.schedule[:last]):
            rope = self._ropes[scale] = self._ropes[scale].to(device, dtype)
            x = noise(rows, h * w, width)
            x = torch.cat((x, x)) if guided else x
            for block in self.blocks:
                x = block(x, condition, rope, text)
            if on_scale is not None:
                on_scale(scale + 1, x)
        self.clear()
        return x

    def clear(self) -> None:
        """Forget keys and values."""
        for block in self.blocks:
            block.sa.cached_k = block.sa.cached_v = None  # type: ignore[union-attr]


def shaped(
    name: str, schedule: tuple[tuple[int, int], ...] = SCHEDULE_1M, seed: int = 0, depth: int | None = None
) -> ShapedVAR:
    """A random-weight model of a named shape, of ``depth`` blocks where that is given.

    Raises:
        ValueError: the name is not one of ``SHAPES``, or ``depth`` is below 1.
    """
    if name not in SHAPES:
        raise ValueError(f"shape: must be one of {', '.join(SHAPES)}, got {name!r}")
    shape = SHAPES[name] if depth is None else replace(SHAPES[name], depth=depth)
    if shape.depth < 1:
        raise ValueError(f"depth: must be at least 1, got {depth}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ShapedVAR(shape, schedule).eval()
