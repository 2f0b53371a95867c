"""How a generation's images look at one scale, which static plan it goes on with, and what that cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.scale_plans import Plan, decide

GREY = (0.299, 0.587, 0.114)
RADIUS = 0.4
"""Share of half the shorter side up to which frequencies are low."""


def edge_change(before: Tensor, after: Tensor) -> Tensor:
    """Mean absolute difference of the Sobel magnitudes of two images [B, 3, H, W], in grey: [B]."""
    return (_edges(after) - _edges(before)).abs().mean((1, 2, 3))


def fine_share(images: Tensor) -> Tensor:
    """Share of FFT amplitude outside radius int(0.4 * min(H, W) / 2), in grey, of images [B, 3, H, W]: [B]."""
    grey = _grey(images)[:, 0]
    height, width = grey.shape[1:]
    amplitude = torch.fft.fftshift(torch.fft.fft2(grey), dim=(1, 2)).abs()
    y = torch.arange(height, device=grey.device) - height // 2
    x = torch.arange(width, device=grey.device) - width // 2
    outside = y[:, None].square() + x.square() > int(RADIUS * min(height, width) / 2) ** 2
    return (amplitude * outside).sum((1, 2)) / amplitude.sum((1, 2)).clamp_min(1e-12)


def features(before: Tensor, after: Tensor) -> list[list[float]]:
    """What `sparvar.scale_plans.FEATURES` names, of every image."""
    pairs: list[list[float]] = torch.stack((edge_change(before, after), fine_share(after)), dim=1).tolist()
    return pairs


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True)


def _edges(images: Tensor) -> Tensor:
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    padded = F.pad(_grey(images), (1, 1, 1, 1), mode="replicate")
    slopes: Tensor = F.conv2d(padded, torch.stack((kernel, kernel.T))[:, None])
    return slopes.square().sum(1, keepdim=True).sqrt()


@dataclass
class Choices:
    """What the generations of an attachment decided.

    Attributes:
        counts: number of generations by the name of the plan they went on with.
        seconds: of both decodes and the decision, per generation.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.seconds:
            return "no generation has decided yet"
        spent = sum(self.seconds) / len(self.seconds)
        made = ", ".join(f"{count} of {name}" for name, count in sorted(self.counts.items()))
        return f"{len(self.seconds)} generations decided, {1000 * spent:.0f} ms each for two decodes: {made}"


@dataclass
class Chooser:
    """The decision of one generation.

    Attributes:
        plan: which adapts.
        choices: where it is counted.
        before: the images before the scale of the decision.
        spent: seconds.
    """

    plan: Plan
    choices: Choices
    before: Tensor | None = None
    spent: float = 0.0

    def __call__(self, scale: int, decode: Callable[[], Tensor]) -> Plan | None:
        """After a scale: the plan to go on with, where this is the scale of the decision, else None."""
        adapt = self.plan.adapt
        if adapt is None or scale not in (adapt.scale - 1, adapt.scale):
            return None
        started = time.perf_counter()
        images = decode()
        if self.before is None:
            self.before = images
            self.spent = time.perf_counter() - started
            return None
        chosen = self.plan.static_plan(*decide(adapt, features(self.before, images)))
        self.choices.counts[chosen.name] += 1
        self.choices.seconds.append(self.spent + time.perf_counter() - started)
        return chosen
