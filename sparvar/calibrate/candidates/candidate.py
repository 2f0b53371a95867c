"""What may run at one site, as records that are measured and priced, and as text in the journal and the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Setting:
    """What all layers of a plan share besides the decision scale.

    Attributes:
        index_map: of cs4a layers.
        sinks: leading scales that are always kept.
        window: odd side of the window around the tile's queries at the current scale, for cs4a; 0 for none.
    """

    index_map: str
    sinks: int
    window: int = 0

    def __str__(self) -> str:
        return f"{self.index_map}+s{self.sinks}w{self.window}"


@dataclass(frozen=True)
class ColumnCandidate:
    """A cs4a site: it reads the columns that its layer has chosen at an earlier scale.

    Attributes:
        decision: scale at which the columns were chosen.
        setting: index map, sink span and window.
        budget: share of the keys that is kept.
        correction: budget that the output correction was made with; None without the correction.
    """

    decision: int
    setting: Setting
    budget: float
    correction: float | None = None

    @property
    def uncorrected(self) -> ColumnCandidate:
        """The same without output correction: it keeps the same keys."""
        return dataclasses.replace(self, correction=None)


@dataclass(frozen=True)
class WindowCandidate:
    """A csla site: it reads windows around the place of its queries.

    Attributes:
        ladder: number of the windows in `Space.ladders`.
        sinks: leading scales that are always kept.
    """

    ladder: int
    sinks: int


Candidate = ColumnCandidate | WindowCandidate


def candidate_text(candidate: Candidate) -> str:
    """The candidate as the journal and ``calibration.json`` name it.

    ``cs4a/DECISION/MAP+sSINKSwWINDOW/BUDGET/CORRECTION``, with ``-`` for no correction, or ``csla/LADDER+sSINKS``.
    """
    if isinstance(candidate, WindowCandidate):
        return f"csla/{candidate.ladder}+s{candidate.sinks}"
    correction = "-" if candidate.correction is None else candidate.correction
    return f"cs4a/{candidate.decision}/{candidate.setting}/{candidate.budget}/{correction}"


def read_candidate(text: str) -> Candidate:
    """The candidate that `candidate_text` has written. Raises ValueError for any other text."""
    policy, *parts = text.split("/")
    if policy == "csla" and len(parts) == 1:
        ladder, sinks = parts[0].split("+s")
        return WindowCandidate(int(ladder), int(sinks))
    if policy != "cs4a" or len(parts) != 4:
        raise ValueError(f"candidate: must be named as by candidate_text, got {text!r}")
    decision, setting, budget, correction = parts
    index_map, sizes = setting.split("+s")
    sinks, window = sizes.split("w")
    made_with = None if correction == "-" else float(correction)
    return ColumnCandidate(int(decision), Setting(index_map, int(sinks), int(window)), float(budget), made_with)
