"""How long a dense image takes on this machine, and the prompts and the compiler that follow from the effort."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sparvar.calibrate.budget import Effort
from sparvar.calibrate.measure.cache import cache_file, write_cache
from sparvar.calibrate.measure.runner import Runner
from sparvar.errors import OptionError, message


def time_dense_image(runner: Runner) -> float:
    """Seconds of a dense image: of the journal or, so that the same machine finds the same plan, of the cache."""

    def measure() -> float:
        file = cache_file("pace", runner.base, runner.model.device)
        known = _load(file)
        if known is None:
            runner.progress.step("timing a dense image")
            known = runner.images.time_dense()
            write_cache(file, {"dense_seconds": known})
        return known

    return float(runner.journal.get("pace", measure))


def apply_effort(runner: Runner, effort: Effort) -> None:
    """Split the prompts and choose the compiler as the effort asks.

    Raises:
        OptionError: the journal is of a run that held out other prompts, compiled otherwise, or searched other budgets.
    """
    images, model = runner.images, runner.model
    images.split(effort.held_out)
    if model.inner == "auto":
        model.inner = "eager" if model.device.type == "cpu" else "inductor"
    for option, what, own in (
        ("--images", "held-out prompts", len(images.held_prompts)),
        ("--inner", "compiler", model.inner),
        ("--effort", "search", "thorough" if effort.fine else "quick"),
    ):
        kept = runner.journal.get(what, lambda own=own: own)  # type: ignore[misc]
        if kept != own:
            must = f"have {kept!r} as its {what}, as the run that is gone on with"
            raise OptionError(message("--resume", must, own, f"say so by {option}, or leave out --resume"))


def _load(path: Path) -> float | None:
    try:
        seconds = float(json.loads(path.read_text(encoding="utf-8"))["dense_seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # none was kept, or what was is damaged: it is timed again
    return seconds if math.isfinite(seconds) and seconds > 0 else None
