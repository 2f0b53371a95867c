"""Timing: runs in turns, their median and quartiles, and the time of every scale of a generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a few numbers."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one number."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def as_dict(self) -> dict[str, Any]:
        return {"median": self.median, "q25": self.low, "q75": self.high, "iqr": self.high - self.low, "n": self.count}


@dataclass
class Generation:
    """One timed generation.

    Attributes:
        image: [3, S, S] in [0, 1].
        seconds: wall time, decoding included.
        scales: wall time of each scale.
        decode: wall time after the last scale.
    """

    image: Tensor
    seconds: float
    scales: list[float] = field(default_factory=list)
    decode: float = 0.0


def scale_medians(timed: Sequence[Generation]) -> list[float]:
    """Median seconds of every scale."""
    return [statistics.median(times) for times in zip(*(one.scales for one in timed), strict=True)]


def decode_median(timed: Sequence[Generation]) -> float:
    """Median seconds after the last scale."""
    return statistics.median(one.decode for one in timed)


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has still to do; a CPU has nothing pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_generation(
    model: Any, label: str | int, seed: int, cfg: float, on_scale: Callable[[int], None] | None = None
) -> Generation:
    """Generate one image and take the time of every scale. ``on_scale`` gets the 0-based scale after each."""
    device = next(model.parameters()).device
    ends: list[float] = []

    def ended(scale: int) -> None:
        synchronize(device)
        ends.append(time.perf_counter())
        if on_scale is not None:
            on_scale(scale)

    synchronize(device)
    started = time.perf_counter()
    image = model.generate(labels=[label], seed=seed, cfg=cfg, on_scale=ended)[0]
    synchronize(device)
    finished = time.perf_counter()
    scales = [end - begin for begin, end in zip([started, *ends], ends, strict=False)]
    return Generation(image.cpu(), finished - started, scales, finished - ends[-1])


def interleave(variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every variant, ``rounds`` times each, taken in turns so that drift hits all alike."""
    for run in variants.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(over: list[float], under: list[float]) -> Spread:
    """Spread of the round-by-round ratios ``over / under``."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])
