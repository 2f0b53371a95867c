"""The training loop shared by the decoder and the transformer: seeded, resumable, interruptible."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn


@dataclass(frozen=True)
class LoopConfig:
    """What one run of :func:`run_loop` does.

    Attributes:
        name: names the checkpoint and the log in ``folder``.
        folder: where both are written.
        steps: optimizer steps in all.
        rate: peak learning rate; linear warm-up, then cosine to ``final`` of it.
        warmup: steps of warm-up.
        final: share of ``rate`` left at the end.
        decay: weight decay of matrices (vectors and biases get none).
        clip: gradient norm above which gradients are scaled down.
        ema: decay of the averaged weights.
        seed: of batches, crops and noise; the state travels in the checkpoint.
        save_every: seconds between checkpoints.
        evaluate_every: steps between held-out losses.
        stop_at: stop before this step and leave the rest for a later run.
    """

    name: str
    folder: Path
    steps: int
    rate: float
    warmup: int = 100
    final: float = 0.02
    decay: float = 0.03
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 0
    save_every: float = 120.0
    evaluate_every: int = 500
    stop_at: int | None = None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name beside ``path`` and move the result into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def run_loop(
    config: LoopConfig,
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> nn.Module:
    """Train ``model`` in place and return its exponential moving average.

    ``loss_of(step, generator)`` gives the loss of one batch; ``evaluate(average)`` the held-out
    figures.  A checkpoint ``folder/name.pt`` (weights, average, optimizer, generator, step) is
    written every ``save_every`` seconds and on Ctrl-C; a later call goes on from it and draws the
    same batches as if it had not stopped.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = config.folder / f"{config.name}.pt", config.folder / f"{config.name}.jsonl"
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=False
    )
    optimizer = torch.optim.AdamW(_groups(model, config.decay), lr=config.rate, betas=(0.9, 0.97))
    generator = torch.Generator().manual_seed(config.seed)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["steps"] != config.steps:
            raise ValueError(
                f"training {config.name}: {checkpoint} was made for {state['steps']} steps, this run asks for"
                f" {config.steps}; use the same number or remove the file to start again"
            )
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first = state["step"]

    def save(step: int) -> None:
        state = {
            "steps": config.steps,
            "step": step,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
        }
        write_atomically(checkpoint, lambda path: torch.save(state, path))

    last = config.steps if config.stop_at is None else min(config.steps, config.stop_at)
    smooth = float("nan")
    saved = time.monotonic()
    done = first
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(config.name, total=config.steps, completed=first, loss=smooth)
        try:
            for step in range(first, last):
                warm = min(1.0, (step + 1) / config.warmup)
                fall = config.final + (1 - config.final) * (1 + math.cos(math.pi * step / config.steps)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = config.rate * warm * fall
                loss = loss_of(step, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                if not torch.isfinite(norm):
                    raise FloatingPointError(f"training {config.name}: gradient is {norm.item()} at step {step}")
                optimizer.step()
                average.update_parameters(model)
                done = step + 1
                value = loss.item()
                smooth = value if smooth != smooth else 0.98 * smooth + 0.02 * value
                progress.update(task, completed=done, loss=smooth)
                if done % config.evaluate_every == 0 or done == config.steps:
                    figures = {"step": done, "loss": smooth, **evaluate(average.module)}
                    with log.open("a") as stream:
                        stream.write(json.dumps(figures) + "\n")
                if time.monotonic() - saved > config.save_every:
                    save(done)
                    saved = time.monotonic()
        finally:
            if done > first:
                save(done)
    return average.module
