"""What a calibration's report says, looked up for its page: sites, means, and the candidates that a plan runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sparvar.calibrate import ColumnCandidate, Setting, candidate_text, read_candidate
from sparvar.scale_plans import Plan

Site = dict[str, Any]

SAME_SHARE = 0.1
"""Windows are those of a csla candidate where both keep the same share of keys up to this part of it."""


EQUAL_DB = 99.95
"""Images that are equal count as 100 dB."""


def columns(names: Iterable[str]) -> list[ColumnCandidate]:
    """The cs4a candidates among names, in their order. Names that other versions wrote otherwise are left out."""
    found = []
    for name in names:
        try:
            candidate = read_candidate(name)
        except ValueError:
            continue
        if isinstance(candidate, ColumnCandidate):
            found.append(candidate)
    return found


def correction_budget(plan: Plan) -> float | None:
    """The budget that a plan's output correction is made with; None without a correction."""
    return plan.cs4a[min(plan.cs4a)].budget if plan.output_correction and plan.cs4a else None


def own_candidate(plan: Plan, site: Site) -> str | None:
    """Name of the candidate that the plan runs at a site; None where it is dense there or none was measured."""
    scale, layer = site["scale"], site["layer"]
    if plan.attention_kind(scale, layer) != "sparse":
        return None
    errors = site.get("relative_error") or {}
    if plan.layers[layer] == "csla":
        share = plan.kept_share(scale, "csla") or 0.0
        ending = f"+s{plan.sink_scales}"
        near = [name for name in errors if name.startswith("csla/") and name.endswith(ending) and name in site["kept"]]
        best = min(near, key=lambda name: abs(site["kept"][name] - share), default=None)
        return best if best is not None and abs(site["kept"][best] - share) <= SAME_SHARE * share else None
    entry = plan.cs4a[scale]
    setting = Setting(plan.index_map, plan.sink_scales, entry.window)
    own = ColumnCandidate(plan.decision_scale or 0, setting, entry.budget, correction_budget(plan))
    return candidate_text(own) if candidate_text(own) in errors else None


def nearest_group(plan: Plan, scale: int, names: Iterable[str]) -> list[ColumnCandidate]:
    """The candidates, by budgets alone different, that are most like what cs4a layers of the plan run at a scale."""
    groups: dict[tuple[int, Setting], list[ColumnCandidate]] = {}
    for one in columns(names):
        groups.setdefault((one.decision, one.setting), []).append(one)
    if not groups:
        return []
    window = plan.cs4a[scale].window if scale in plan.cs4a else 0

    def unlike(group: tuple[int, Setting]) -> tuple[Any, ...]:
        decision, setting = group
        other = decision != plan.decision_scale, setting.index_map != plan.index_map
        return (*other, setting.window != window, setting.sinks != plan.sink_scales, -decision, group)

    return groups[min(groups, key=unlike)]


def late_scales(report: dict[str, Any]) -> list[int]:
    """Scales at which candidates were measured, ascending."""
    return sorted({site["scale"] for site in report.get("sites") or () if site.get("relative_error")})


def by_scale(report: dict[str, Any], what: str) -> dict[int, dict[int, float]]:
    """A figure per scale and layer; a list counts as its mean. Sites without it are left out."""
    found: dict[int, dict[int, float]] = {}
    for site in report.get("sites") or ():
        value = site.get(what)
        if isinstance(value, list):
            value = mean(value) if value else None
        if value is not None:
            found.setdefault(site["scale"], {})[site["layer"]] = float(value)
    return dict(sorted(found.items()))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def decibels(value: float | None) -> str:
    """PSNR as text."""
    if value is None:
        return "not measured"
    return "equal images" if value >= EQUAL_DB else f"{value:.2f}"
