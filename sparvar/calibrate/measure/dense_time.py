"""How long a dense image takes here, and what follows from it for a calibration that nobody told how fine to be."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from pathlib import Path

import torch

from sparvar import env
from sparvar.calibrate.budget import Effort
from sparvar.calibrate.measure.costs import device_text, keep
from sparvar.calibrate.measure.runner import Runner, split_prompts
from sparvar.errors import OptionError, message
from sparvar.scale_plans import Plan
from sparvar.version import __version__


def pace(runner: Runner) -> float:
    """Seconds of a dense image: of the journal or, so that the same machine finds the same plan, of the cache."""

    def look() -> float:
        file = _file(runner.base, next(runner.subject.model.parameters()).device)
        known = _load(file)
        if known is None:
            runner.say("timing a dense image")
            known = runner.pace()
            keep(file, {"dense_seconds": known})
        return known

    return float(runner.journal.get("pace", look))


def settle(runner: Runner, effort: Effort) -> None:
    """Split the prompts and choose the compiler as the effort asks.

    Raises:
        OptionError: the journal is of a run that held out other prompts, compiled otherwise, or searched other budgets.
    """
    runner.prompts, runner.held_prompts = split_prompts(runner.prompts, effort.held_out)
    if runner.inner == "auto":
        on_processor = next(runner.subject.model.parameters()).device.type == "cpu"
        runner.inner = "eager" if on_processor else "inductor"
    for option, what, own in (
        ("--images", "held-out prompts", len(runner.held_prompts)),
        ("--inner", "compiler", runner.inner),
        ("--effort", "search", "thorough" if effort.fine else "quick"),
    ):
        kept = runner.journal.get(what, lambda own=own: own)  # type: ignore[misc]
        if kept != own:
            must = f"have {kept!r} as its {what}, as the run that is gone on with"
            raise OptionError(message("--resume", must, own, f"say so by {option}, or leave out --resume"))


def _file(base: Plan, device: torch.device) -> Path:
    key = {
        "device": device_text(device),
        "node": platform.node(),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, __version__],
        "model": base.model.model_dump(mode="json"),
        "schedule": base.schedule,
    }
    mark = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return env.cache_dir() / f"pace-{mark}.json"


def _load(path: Path) -> float | None:
    try:
        seconds = float(json.loads(path.read_text(encoding="utf-8"))["dense_seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none was kept, or what was is damaged: it is timed again
    return seconds if math.isfinite(seconds) and seconds > 0 else None


__all__ = ["pace", "settle"]
