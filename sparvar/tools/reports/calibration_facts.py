"""What a calibration's report says, looked up for its page: sites, means, and the candidates that a plan runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.scale_plans import Plan

Site = dict[str, Any]

SAME_SHARE = 0.1
"""Windows are those of a csla candidate where both keep the same share of keys up to this part of it."""


EQUAL_DB = 99.95
"""Images that are equal count as 100 dB."""


@dataclass(frozen=True)
class Candidate:
    """A cs4a candidate as its name says: ``cs4a/11/relative+s5w7/0.2/-``.

    Attributes:
        name: the name itself.
        group: everything but the budgets; candidates of a group differ in those alone.
        decision: decision scale.
        index_map: how columns are mapped.
        sinks: leading scales that are kept.
        window: side of the window, 0 for none.
        budget: share of keys, as text.
        first: budget that the output correction was made with, as text, or ``-`` without one.
    """

    name: str
    group: tuple[int, str, str]
    decision: int
    index_map: str
    sinks: int
    window: int
    budget: str
    first: str

    @property
    def plain(self) -> str:
        """The name of the same candidate without correction: kept keys and recall are measured once for both."""
        return self.name.rpartition("/")[0] + "/-"


_NAME = re.compile(r"cs4a/(\d+)/([a-z]+)(\+s(\d+)w(\d+))/([^/]+)/([^/]+)")


def candidates(names: Iterable[str]) -> list[Candidate]:
    """The cs4a candidates among names, in their order."""
    found = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            decision, index_map, setting, sinks, window, budget, first = match.groups()
            found.append(
                Candidate(
                    name,
                    (int(decision), index_map, setting),
                    int(decision),
                    index_map,
                    int(sinks),
                    int(window),
                    budget,
                    first,
                )
            )
    return found


def first_budget(plan: Plan) -> str:
    """How candidates name the correction of a plan."""
    return f"{plan.cs4a[min(plan.cs4a)].budget:g}" if plan.output_correction and plan.cs4a else "-"


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
    wanted = f"{plan.cs4a[scale].budget:g}", first_budget(plan)
    setting = plan.decision_scale, plan.index_map, plan.sink_scales, plan.cs4a[scale].window
    for one in candidates(errors):
        if (one.decision, one.index_map, one.sinks, one.window) == setting and (one.budget, one.first) == wanted:
            return one.name
    return None


def nearest_group(plan: Plan, scale: int, names: Iterable[str]) -> list[Candidate]:
    """The candidates, by budget alone different, that are most like what cs4a layers of the plan run at a scale."""
    groups: dict[tuple[int, str, str], list[Candidate]] = {}
    for one in candidates(names):
        groups.setdefault(one.group, []).append(one)
    if not groups:
        return []
    window = plan.cs4a[scale].window if scale in plan.cs4a else 0

    def unlike(group: tuple[int, str, str]) -> tuple[Any, ...]:
        one = groups[group][0]
        other = one.decision != plan.decision_scale, one.index_map != plan.index_map
        return (*other, one.window != window, one.sinks != plan.sink_scales, -one.decision, group)

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


def numbers(ascending: Iterable[int]) -> str:
    """Ascending whole numbers as ``0 to 3, 5``."""
    runs = []
    for _, run in itertools.groupby(enumerate(ascending), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        join = " to " if len(members) > 2 else ", "
        runs.append(join.join(map(str, dict.fromkeys((members[0], members[-1])))))
    return ", ".join(runs)


def plural(count: int, word: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def decibels(value: float | None) -> str:
    """PSNR as text."""
    if value is None:
        return "not measured"
    return "equal images" if value >= EQUAL_DB else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """Seconds to three digits, without an exponent."""
    if value is None:
        return "not measured"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
