"""The plans that come with the package, and finding the plan a caller means."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from sparvar.errors import PlanError, message
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.presets.published import published_models, published_plan

_FOLDER = Path(__file__).parent


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_FOLDER.glob("*.json"), key=lambda path: path.stem)}


def shipped_plans() -> dict[str, Plan]:
    """Every plan that comes with the package, by name; empty when there is none."""
    return {name: _read(name, path) for name, path in _files().items()}


def _read(name: str, path: Path) -> Plan:
    # A shipped file is nobody's to edit: its digest must match.
    return Plan.loads(path.read_text(encoding="utf-8"), strict_digest=True, source=f"shipped plan {name!r}")


def find_plan(fingerprint: str) -> Plan | None:
    """The shipped plan made for a model with this fingerprint, or None. The first by name where there are several."""
    return next((plan for plan in shipped_plans().values() if plan.model.fingerprint == fingerprint != ""), None)


def load_plan(source: Plan | str | os.PathLike[str]) -> Plan:
    """A plan without contradictions from what a caller gives: a `Plan`, a file, or the name of a shipped plan.

    The name of a published model may be followed by one of its schedules: ``infinity-2b:0.25M/1.333``.
    Text that ends in ``.json``, holds a path separator or names an existing file is a path. Raises `PlanError`.
    """
    if isinstance(source, Plan):
        return source.require()
    text = os.fspath(source)
    separators = [mark for mark in (os.sep, os.altsep) if mark]
    named = text.partition(":")[0] in published_models()
    is_path = not isinstance(source, str) or text.endswith(".json") or any(mark in text for mark in separators)
    if (is_path and not named) or Path(text).is_file():
        return Plan.load(text)
    known = _files()
    if text in known:
        return _read(text, known[text])
    published = published_plan(text)
    if published is not None:
        return published
    names = [*known, *published_models()]
    near = get_close_matches(text, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else "a path to a plan file ends in .json"
    must = f"be a file or one of the shipped plans ({', '.join(names)})"
    raise PlanError(message("plan", must, text, remedy))
