"""What a plan may drop from the KV cache between scales, and how many keys are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator

from sparvar.scale_plans.records import FrozenDict, Record, by_name, by_scale

KINDS: dict[str, tuple[str, ...]] = {
    "scalekv": ("drafter", "refiner"),
    "hack": ("contextual", "structural"),
    "local": ("local",),
}
"""Kinds of layers (of heads for ``hack``) by method."""
WHOLE = "whole"
"""Kind of a layer whose cache is not compressed, with any method."""


def _counts(table: Mapping[int, Mapping[str, int]]) -> Mapping[int, Mapping[str, int]]:
    return by_scale({scale: FrozenDict(by_name(counts)) for scale, counts in table.items()})


class KVCompression(Record):
    """Keys and values that stay in the cache once a scale has run. Those of the last drawn scale never do.

    Every head of a layer keeps the same number, so that shapes stay static; which ones differs by head and batch row.
    The sink span always stays.
    """

    method: Literal["scalekv", "hack", "local"]
    """How keys are chosen.

    ``scalekv``: those with the highest attention from a few observation queries of the scale that has just run
    (ScaleKV, section 3.3). ``hack``: the same for contextual heads; structural heads keep the sinks, the latest scale
    and the highest of what lies between (HACK). ``local``: the sinks and the latest scales; of the first scale that
    does not fit whole, cells that lie evenly (SparVAR, table 2).
    """
    kinds: tuple[tuple[str, ...], ...]
    """Per layer, one kind for all heads, or one for each key head (``hack``)."""
    keep: Annotated[Mapping[int, Mapping[str, int]], AfterValidator(_counts)]
    """Scale -> kind -> keys that a head keeps once the scale has run. Heads of several kinds in one layer share their
    sum evenly. After scales that are left out nothing is dropped, nor stored in another type."""
    queries: int = 16
    """Observation queries: centres of that many equal patches of the grid, a square number."""
    pool: int = 1
    """Odd number of neighbouring keys over which scores are averaged; 1 for none."""
    store: Literal["same", "bfloat16"] = "same"
    """Type in which keys and values are stored between the scales of ``keep``: ``same`` as attention computes in."""

    def before(self, drawn: int) -> KVCompression | None:
        """The same where ``drawn`` is the last scale that is drawn; None where nothing is dropped before it."""
        keep = {scale: counts for scale, counts in self.keep.items() if scale < drawn}
        return KVCompression.model_validate({**self.model_dump(), "keep": keep}) if keep else None

    def count(self, scale: int, layer: int) -> int | None:
        """Keys that each head of a layer (from 0) keeps once a scale has run; None where nothing is dropped."""
        kinds = self.kinds[layer]
        if scale not in self.keep or kinds == (WHOLE,):
            return None
        counts = self.keep[scale]
        return round(sum(counts[kind] for kind in kinds) / len(kinds))
