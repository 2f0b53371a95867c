"""Convolutional decoder that adds what a linear decode of patches cannot show."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection, [B, C, h, w] to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PixelDecoder(nn.Module):
    """Latents [B, dim, h, w] to a residual image [B, 3, h*patch, w*patch].

    Most of the work is done at latent resolution; two pixel shuffles raise it to pixels.
    """

    def __init__(self, dim: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        if patch % 2:
            raise ValueError(f"PixelDecoder: patch must be even, got {patch}")
        half = width // 2
        self.stem = nn.Conv2d(dim, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
        self.up = nn.Conv2d(width, 4 * half, 3, padding=1)
        self.refine = ResidualBlock(half)
        self.head = nn.Conv2d(half, 3 * (patch // 2) ** 2, 3, padding=1)
        self.patch = patch
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, latent: Tensor) -> Tensor:
        x = self.blocks(self.stem(latent))
        x = self.refine(F.pixel_shuffle(self.up(x), 2))
        return F.pixel_shuffle(self.head(F.silu(x)), self.patch // 2)
