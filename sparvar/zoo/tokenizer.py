"""Multi-scale residual bit tokenizer of the landscape model.

A 512x512 image is cut into 8x8 patches, projected on the first ``dim`` principal components and
whitened: a latent ``f`` [B, dim, 64, 64].  Scale by scale, the part of ``f`` that is not explained
yet is averaged down to the scale's grid and reduced to its signs (one bit per channel, the bitwise
codes of Infinity, arXiv 2412.04431 section 3.2); each sign stands for ``+-gain[scale, channel]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.zoo.decoder import PixelDecoder

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
"""Sides of the square grids, the 1:1 schedule of Infinity at one megapixel."""


class BitTokenizer(nn.Module):
    """Images to multi-scale bits and back.

    Args:
        dim: latent channels, that is bits per token.
        patch: side of a patch in pixels.
        sides: side of every scale's grid, coarse to fine; the last one is the latent's own.
        width: channels of the convolutional decoder.
        depth: residual blocks of the convolutional decoder.
    """

    mean: Tensor
    basis: Tensor
    std: Tensor
    gains: Tensor

    def __init__(
        self,
        dim: int = 24,
        patch: int = 8,
        sides: tuple[int, ...] = SIDES,
        width: int = 128,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.dim, self.patch, self.sides = dim, patch, tuple(sides)
        pixels = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(dim, pixels))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("gains", torch.ones(len(sides), dim))
        self.decoder = PixelDecoder(dim, patch, width, depth)

    @property
    def image_side(self) -> int:
        return self.sides[-1] * self.patch

    def patches(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [0, 1] to centred patches [B, 3*patch*patch, S/patch, S/patch]."""
        return F.pixel_unshuffle(images * 2 - 1, self.patch) - self.mean.view(1, -1, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [0, 1] to whitened latents [B, dim, S/patch, S/patch]."""
        latent = torch.einsum("dp,bphw->bdhw", self.basis, self.patches(images))
        return latent / self.std.view(1, -1, 1, 1)

    def grow(self, level: Tensor, grid: int | tuple[int, int]) -> Tensor:
        """Resize a map [B, dim, h, w] to a grid (h, w), or to a square of one side: bilinear up, area down.

        No axis may grow while the other shrinks.
        """
        height, width = (grid, grid) if isinstance(grid, int) else grid
        h, w = level.shape[-2:]
        if (h, w) == (height, width):
            return level
        if h > height or w > width:
            return F.interpolate(level, size=(height, width), mode="area")
        return F.interpolate(level, size=(height, width), mode="bilinear", align_corners=False)

    def accumulate(self, total: Tensor, bits: Tensor, scale: int) -> Tensor:
        """Add the bits [B, dim, h, w] in {0, 1} of 0-based ``scale`` to ``total``, whose grid is the last scale's."""
        level = (bits * 2 - 1) * self.gains[scale].view(1, -1, 1, 1)
        return total + self.grow(level, (total.shape[-2], total.shape[-1]))

    def quantise(
        self, latent: Tensor, scales: int, flip: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Bits of the first ``scales`` scales and what the transformer sees before each.

        ``flip`` [B] is the share of bits to invert at every scale before going on (the bitwise
        self-correction of Infinity, section 3.4): the targets of the finer scales then repair it.

        Returns:
            ``bits``: per scale [B, dim, h, w] in {0, 1}, the right answer given the past;
            ``inputs``: per scale the accumulated map resized to that scale's grid (zeros first);
            ``total``: the accumulated map [B, dim, 64, 64] after the last scale.
        """
        total = torch.zeros_like(latent)
        bits, inputs = [], []
        for scale in range(scales):
            side = self.sides[scale]
            inputs.append(self.grow(total, side))
            target = (self.grow(latent - total, side) > 0).to(latent.dtype)
            bits.append(target)
            used = target
            if flip is not None:
                noise = torch.rand(target.shape, generator=generator)
                used = torch.where(noise < flip.view(-1, 1, 1, 1), 1 - target, target)
            total = self.accumulate(total, used, scale)
        return bits, inputs, total

    def decode_linear(self, latent: Tensor) -> Tensor:
        """Whitened latents [B, dim, h, w] to images [B, 3, h*patch, w*patch] by the transposed projection."""
        patches = torch.einsum("dp,bdhw->bphw", self.basis, latent * self.std.view(1, -1, 1, 1))
        return F.pixel_shuffle(patches + self.mean.view(1, -1, 1, 1), self.patch) / 2 + 0.5

    def decode(self, latent: Tensor) -> Tensor:
        """Whitened latents [B, dim, h, w] to images [B, 3, h*patch, w*patch] in [0, 1]."""
        return (self.decode_linear(latent) + self.decoder(latent)).clamp(0, 1)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit projection and gains to images [n, 3, S, S] in [0, 1], without gradients.

        The sign code with the least squared error has the mean absolute residual as its gain.
        """
        patches = torch.cat([self.patches(chunk) for chunk in images.split(8)])
        flat = patches.permute(1, 0, 2, 3).flatten(1)
        self.mean += flat.mean(1)
        flat = flat - flat.mean(1, keepdim=True)
        covariance = (flat @ flat.T / flat.shape[1]).double()
        values, vectors = torch.linalg.eigh(covariance)
        order = values.argsort(descending=True)[: self.dim]
        self.basis.copy_(vectors[:, order].T)
        self.std.copy_(values[order].sqrt())
        latent = torch.cat([self.encode(chunk) for chunk in images.split(8)])
        total = torch.zeros_like(latent)
        for scale, side in enumerate(self.sides):
            residual = self.grow(latent - total, side)
            self.gains[scale] = residual.abs().mean(dim=(0, 2, 3))
            total = self.accumulate(total, (residual > 0).to(latent.dtype), scale)
