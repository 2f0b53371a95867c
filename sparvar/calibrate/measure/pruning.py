"""ToProVAR's quantities, measured beside dense attention. Nothing is pruned here: see `fit.thresholds`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.errors import SparvarError, message
from sparvar.scale_plans import Plan

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Shares of queries for which the error of pruning is measured."""


def representative_scale(base: Plan) -> int:
    """The scale whose entropy maps classify layers: the paper's 6 of 13 (Table 6), so scale round(6/13 * K).

    At least 2, since scale 1 is not observed, and at most K.
    """
    return min(max(2, round(6 * base.scales / 13)), base.scales)


class PruningSums:
    """Adds up what pruning needs while a model generates, per (scale, layer).

    Kept from one observed scale to the next is each layer's dense output, [B, H, N, D] in its own dtype, and freed at
    the last scale: at most B * H * N_{K-1} * D numbers per layer, however many prompts. A call needs one or two
    outputs of the current grid in fp32 besides.
    """

    def __init__(self, base: Plan, representative: int) -> None:
        self.base, self.representative = base, representative
        self._before: dict[int, tuple[int, Tensor]] = {}

    def add(self, scale: int, layer: int, out: Tensor, entropy: Tensor, found: dict[str, Any]) -> None:
        """Add one site of one generation to ``found``, whose values are summed over prompts.

        ``rho``: [share of queries with an entropy, the mean over heads, below that of their row] (ToProVAR, Eq. 3).
        ``entropy_map``: at the representative scale, mean over rows and heads per query, h * w values in nats.
        ``prune``: share, as text, to [squared error]: the sum over rows, heads and channels of (restored - dense)^2
        when the round(share * N) queries of highest head-mean entropy, of each row (ties: the lower index), take
        the same layer's output at the scale seen before, bilinearly resized. A pruning pass would restore that, except
        that its own previous output may be restored in part already. Not there at the first scale that is seen.

        Args:
            scale: from 1; ascending for a layer within a generation.
            layer: from 0.
            out: dense output [B, H, N, D].
            entropy: [B, H, N] fp32, nats.
            found: the site's sums.

        Raises:
            SparvarError: there are more rows than at the scale before.
        """
        by_query = entropy.double().mean(dim=1)  # [B, N]
        add_values(found, "rho", [float((by_query < by_query.mean(-1, keepdim=True)).float().mean())])
        if scale == self.representative:
            add_values(found, "entropy_map", by_query.mean(dim=0).tolist())
        before = self._before.pop(layer, None)
        if before is not None and before[0] < scale:  # a later scale is left from a generation that was given up
            errors = self._restored(scale, layer, before, out).sub_(out).square_().sum((1, 3), dtype=torch.float64)
            order = by_query.argsort(dim=1, descending=True, stable=True)
            total = F.pad(errors.gather(1, order).cumsum(1).sum(0), (1, 0)).tolist()  # of 0..N queries
            table = found.setdefault("prune", {})
            for share in SHARES:
                add_values(table, f"{share:g}", [total[round(share * out.shape[2])]])
        if scale < self.base.scales:
            # A copy: buffers of a compiled graph may be written again.
            self._before[layer] = scale, out.detach().clone()

    def _restored(self, scale: int, layer: int, before: tuple[int, Tensor], out: Tensor) -> Tensor:
        """The previous scale's output on the grid of ``out``, [B, H, N, D] in fp32."""
        source, previous = before
        rows, heads, _, dim = out.shape
        if previous.shape[0] < rows:
            must = f"have at most the {previous.shape[0]} rows of scale {source}"
            raise SparvarError(message(f"layer {layer} at scale {scale}", must, rows))
        # Guidance dropped in between leaves the conditional rows, which come first.
        grid = previous[:rows].transpose(1, 2).reshape(rows, *self.base.grid(source), heads * dim).permute(0, 3, 1, 2)
        grown = F.interpolate(grid.float(), size=self.base.grid(scale), mode="bilinear", align_corners=False)
        return grown.permute(0, 2, 3, 1).reshape(rows, -1, heads, dim).transpose(1, 2)


def add_values(table: dict[Any, Any], name: Hashable, values: list[float]) -> None:
    """Add to one of the sums of a site, value by value."""
    have = table.get(name)
    table[name] = values if have is None else [a + b for a, b in zip(have, values, strict=True)]
