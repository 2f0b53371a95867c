"""Fit the projection and the gains, then train the convolutional decoder on quantised latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.training.data import Photos, centre_crops, random_crops
from sparvar.zoo.training.loop import LoopConfig, run_loop

DECODER = LoopConfig(name="decoder", folder=Path("."), steps=2400, rate=7e-4, clip=0.5, decay=0.01, seed=1, ema=0.995)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, [B, 3, h, w] in [0, 1] to [B]."""
    return -10 * (images - references).square().flatten(1).mean(1).log10()


def fit_tokenizer(tokenizer: BitTokenizer, photos: Photos, seed: int = 0, samples: int = 320) -> None:
    """Fit projection and gains to random crops."""
    generator = torch.Generator().manual_seed(seed)
    images, _ = random_crops(photos, samples, tokenizer.image_side, generator)
    tokenizer.fit(images)


def train_decoder(
    tokenizer: BitTokenizer, train: Photos, held: Photos, folder: Path, batch: int = 6, config: LoopConfig = DECODER
) -> dict[str, float]:
    """Train ``tokenizer.decoder`` and put the averaged weights in place; returns held-out PSNR in dB."""
    side = tokenizer.image_side // 2
    held_images, _ = centre_crops(held, tokenizer.image_side)
    with torch.no_grad():
        held_total = torch.cat(
            [tokenizer.quantise(tokenizer.encode(chunk), len(tokenizer.sides))[2] for chunk in held_images.split(4)]
        )

    def evaluate(decoder: nn.Module) -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            linear = tokenizer.decode_linear(held_total).float()
            full = (linear + torch.cat([decoder(chunk).float() for chunk in held_total.split(2)])).clamp(0, 1)
        return {
            "psnr_linear": psnr(linear.clamp(0, 1), held_images).mean().item(),
            "psnr": psnr(full, held_images).mean().item(),
        }

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        images, _ = random_crops(train, batch, tokenizer.image_side, generator)
        with torch.no_grad():
            latent = tokenizer.encode(images)
            flip = torch.rand(batch, generator=generator) * 0.04
            total = tokenizer.quantise(latent, len(tokenizer.sides), flip=flip, generator=generator)[2]
            # A quarter of each picture is enough to learn from, and four times cheaper.
            cells = side // tokenizer.patch
            top, left = (int(torch.randint(cells + 1, (), generator=generator)) for _ in range(2))
            total = total[:, :, top : top + cells, left : left + cells].contiguous(memory_format=torch.channels_last)
            first, second = top * tokenizer.patch, left * tokenizer.patch
            target = images[:, :, first : first + side, second : second + side]
            linear = tokenizer.decode_linear(total)
        with torch.autocast("cpu", torch.bfloat16):
            out = tokenizer.decoder(total)
        out = linear + out.float()
        return (
            F.mse_loss(out, target)
            + 0.05 * F.l1_loss(out.diff(dim=-1), target.diff(dim=-1))
            + 0.05 * F.l1_loss(out.diff(dim=-2), target.diff(dim=-2))
        )

    tokenizer.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = run_loop(replace(config, folder=folder), tokenizer.decoder, loss_of, evaluate)
    tokenizer.decoder.load_state_dict(average.state_dict())
    return evaluate(tokenizer.decoder)
