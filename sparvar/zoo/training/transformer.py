"""Train the transformer on bits, coarse scales first, all scales last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.training.data import Photos, centre_crops, random_crops
from sparvar.zoo.training.loop import LoopConfig, run_loop


@dataclass(frozen=True)
class Stage:
    """Part of the curriculum: ``scales`` scales (of the full-size latent) with ``batch`` crops a step.

    Until step ``weigh_from`` all channels weigh alike, afterwards by what they show (:func:`channel_weights`).
    """

    scales: int
    batch: int
    loop: LoopConfig
    weigh_from: int = 0


STAGES = (
    Stage(
        7,
        16,
        LoopConfig("scales07", Path("."), steps=2200, stop_at=1650, rate=8e-4, final=0.3, seed=11),
        weigh_from=762,
    ),
    Stage(
        10,
        6,
        LoopConfig("scales10", Path("."), 300, rate=4e-4, final=0.3, warmup=30, ema=0.99, seed=12, evaluate_every=100),
    ),
    Stage(
        13,
        2,
        LoopConfig("scales13", Path("."), 120, rate=2e-4, final=0.05, warmup=10, ema=0.97, seed=13, evaluate_every=60),
    ),
    # A second round: after the first, classes told by coarse structure (city, industrial) were still mist.
    Stage(7, 8, LoopConfig("scales07b", Path("."), 3600, rate=6e-4, final=0.05, seed=21)),
    Stage(
        10,
        6,
        LoopConfig(
            "scales10b",
            Path("."),
            320,
            stop_at=180,
            rate=3e-4,
            final=0.2,
            warmup=20,
            ema=0.99,
            seed=22,
            evaluate_every=60,
        ),
    ),
    Stage(
        13,
        2,
        LoopConfig("scales13b", Path("."), 110, rate=2e-4, final=0.05, warmup=10, ema=0.97, seed=23, evaluate_every=55),
    ),
    # A third round, the first without the photographs that show no landscape (data.NO_LANDSCAPE).
    Stage(7, 8, LoopConfig("scales07c", Path("."), 1400, rate=5e-4, final=0.05, seed=31)),
    Stage(
        10,
        6,
        LoopConfig("scales10c", Path("."), 100, rate=3e-4, final=0.1, warmup=10, ema=0.98, seed=32, evaluate_every=50),
    ),
    Stage(
        13,
        2,
        LoopConfig("scales13c", Path("."), 70, rate=2e-4, final=0.05, warmup=10, ema=0.97, seed=33, evaluate_every=35),
    ),
)


def channel_weights(tokenizer: BitTokenizer, floor: float = 0.15) -> Tensor:
    """Weight of every bit's loss, [scales, dim], mean 1 per scale.

    Proportional to what the bit moves in the picture (gain times the channel's standard deviation), above a floor:
    the bits of the weakest channels are coin flips at coarse scales, and their gradients drown the others.
    """
    shown = tokenizer.gains * tokenizer.std
    return floor + (1 - floor) * shown / shown.mean(1, keepdim=True)


def bit_loss(logits: list[Tensor], bits: list[Tensor], channels: Tensor | None = None) -> tuple[Tensor, list[float]]:
    """Binary cross-entropy in nats per bit, mean over scales weighted by the square root of their size.

    A plain mean over tokens would leave 2 % to the scales up to 12x12, which decide what the picture shows.
    ``channels`` [scales, dim] weighs the bits of a token.
    """
    losses = []
    for scale, (part, target) in enumerate(zip(logits, bits, strict=True)):
        weight = None if channels is None else channels[scale].view(1, -1, 1, 1)
        losses.append(F.binary_cross_entropy_with_logits(part.float(), target, weight=weight))
    weights = torch.tensor([float(target.shape[-1]) for target in bits])
    return (torch.stack(losses) * weights).sum() / weights.sum(), [loss.item() for loss in losses]


def train_transformer(
    model: LandscapeVAR,
    train: Photos,
    held: Photos,
    folder: Path,
    stages: tuple[Stage, ...] = STAGES,
    drop: float = 0.1,
    max_flip: float = 0.2,
) -> dict[str, float]:
    """Run the stages one after the other; returns the last stage's held-out losses in nats per bit.

    ``drop`` is the share of rows trained without class (CFG), ``max_flip`` the largest share of
    inverted bits (:meth:`BitTokenizer.quantise`).
    """
    tokenizer = model.tokenizer.requires_grad_(False)
    for block in model.blocks:  # Inductor fuses what would otherwise be half of a step's time
        block.compile(dynamic=False)
    held_images, held_labels = centre_crops(held, tokenizer.image_side)
    held_latent = torch.cat([tokenizer.encode(chunk) for chunk in held_images.split(4)])
    channels = channel_weights(tokenizer)
    figures: dict[str, float] = {}
    for stage in stages:
        torch.compiler.reset()
        held_bits, held_inputs, _ = tokenizer.quantise(held_latent, stage.scales)

        def evaluate(
            average: nn.Module, bits: list[Tensor] = held_bits, inputs: list[Tensor] = held_inputs
        ) -> dict[str, float]:
            sums: list[Tensor] = []
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                for i in range(len(held_labels)):
                    logits = average(held_labels[i : i + 1], [level[i : i + 1] for level in inputs])
                    sums.append(torch.tensor(bit_loss(logits, [target[i : i + 1] for target in bits])[1]))
            each = torch.stack(sums).mean(0)
            weights = torch.tensor([float(target.shape[-1]) for target in bits])
            found = {f"held_{bits[k].shape[-1]}": each[k].item() for k in range(len(bits))}
            return {"held": ((each * weights).sum() / weights.sum()).item(), **found}

        def loss_of(step: int, generator: torch.Generator, stage: Stage = stage) -> Tensor:
            images, labels = random_crops(train, stage.batch, tokenizer.image_side, generator)
            flip = torch.rand(stage.batch, generator=generator) * max_flip
            # A third of the rows see no inverted bits, as the early scales of generation do.
            flip = flip * (torch.rand(stage.batch, generator=generator) > 1 / 3)
            bits, inputs, _ = tokenizer.quantise(tokenizer.encode(images), stage.scales, flip, generator)
            free = torch.rand(stage.batch, generator=generator) < drop
            labels = torch.where(free, len(model.classes), labels)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(labels, inputs)
            return bit_loss(logits, bits, channels if step >= stage.weigh_from else None)[0]

        average = run_loop(replace(stage.loop, folder=folder), model, loss_of, evaluate)
        model.load_state_dict(average.state_dict())
        figures = evaluate(model)
    return figures
