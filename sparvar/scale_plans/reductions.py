"""What a plan may leave out beside attention's columns: tokens of a scale, and the unconditional rows of guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator

from sparvar.scale_plans.records import Record, by_scale

SCORES = ("pivot", "entropy", "change", "random", "tome", "pitome")
FILLS = ("input", "output", "previous", "delta", "anchor", "merge")


class PrunedSpan(Record):
    """Consecutive layers that run on the same kept tokens: chosen once, before the first of them."""

    first: int
    last: int
    """Layers from 0, both included."""
    keep: Annotated[Mapping[int, float], AfterValidator(by_scale)]
    """Scale -> share of its tokens that these layers compute, in (0, 1]; scales that are left out compute all."""


class Pruning(Record):
    """Tokens that skip blocks: attention, cross-attention and MLP. What they would add to the KV cache is missing."""

    score: Literal["pivot", "entropy", "change", "random", "tome", "pitome"]
    """How important a token is; the highest scores of an image stay.

    ``pivot``: squared distance from the mean token (FastVAR, Eq. 4). ``entropy``: minus the layers' attention entropy
    at ``source`` (ToProVAR, Eq. 6). ``change``: squared size of what the span added to the token at ``source``
    (SparseVAR's block MSE, summed over channels). Baselines: ``random``; ``tome``, minus the cosine with the most
    similar token of another set (ToMe's bipartite matching); ``pitome``, minus the mean cosine with all others.
    """
    fill: Literal["input", "output", "previous", "delta", "anchor", "merge"]
    """What stands for a skipped token behind the span.

    ``input``: the token as it came in. ``output``: what the span gave at ``source``, enlarged (FastVAR's cached token
    restoration). ``previous``: what stood behind the span at the scale right before, its own skipped tokens included,
    enlarged (SparseVAR without residuals). ``delta``: the token plus what the span added at ``source``, enlarged.
    ``anchor``: what the span gave for the most similar of the anchors around it, a token of every fourth row and column
    (SparseVAR). ``merge``: kept tokens run as the mean of themselves and the skipped tokens most similar to them, which
    get their outputs (ToMe).
    """
    source: int
    """The scale whose block outputs and entropies are kept for ``fill`` and ``score``; tokens are left out after it."""
    spans: tuple[PrunedSpan, ...]


class Guidance(Record):
    """Late scales compute the conditional rows alone: half of the work under classifier-free guidance."""

    conditional_from: int
    """The first scale without unconditional rows; all later ones have none either."""
    fill: Literal["copy", "delta"] = "copy"
    """What stands for them behind the last layer: the conditional rows (no guidance there), or those minus the
    difference that guidance made at the scale before, enlarged."""


class Skip(Record):
    """Scales that are not drawn at all."""

    last: int
    """How many of the last scales; the image is decoded from what was accumulated before them."""
