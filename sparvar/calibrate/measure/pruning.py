"""ToProVAR's quantities, measured beside dense attention, and the thresholds that follow from them.

Nothing is pruned here: this fixes where a pruning pass may start (tau), in which layers (beta) and how much (alphas),
with the curves that led there. What the thresholds mean is in `sparvar.scale_plans`: `start_scale`, `layer_score` and
`keep_count`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.calibrate.measure.prunable import Layers, classify, map_ratio, reachable, score_curve
from sparvar.errors import SparvarError, message
from sparvar.scale_plans import Plan, Thresholds, keep_count, start_scale

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Shares of queries for which the error of pruning is measured."""
ALPHAS = tuple(step / 10 for step in range(10))
MIN_KEEP = 0.1
"""The least that is kept: beyond 1 - min_keep no error was measured."""

Sites = Mapping[tuple[int, int], dict[str, Any]]


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

    def see(self, scale: int, layer: int, out: Tensor, entropy: Tensor, found: dict[str, Any]) -> None:
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
        _add(found, "rho", [float((by_query < by_query.mean(-1, keepdim=True)).float().mean())])
        if scale == self.representative:
            _add(found, "entropy_map", by_query.mean(dim=0).tolist())
        before = self._before.pop(layer, None)
        if before is not None and before[0] < scale:  # a later scale is left from a generation that was given up
            errors = self._restored(scale, layer, before, out).sub_(out).square_().sum((1, 3), dtype=torch.float64)
            order = by_query.argsort(dim=1, descending=True, stable=True)
            total = F.pad(errors.gather(1, order).cumsum(1).sum(0), (1, 0)).tolist()  # of 0..N queries
            table = found.setdefault("prune", {})
            for share in SHARES:
                _add(table, f"{share:g}", [total[round(share * out.shape[2])]])
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


def _add(table: dict[str, Any], name: str, values: list[float]) -> None:
    have = table.get(name)
    table[name] = values if have is None else [a + b for a, b in zip(have, values, strict=True)]


def importance(entropy_map: Sequence[Sequence[float]], scale: int, scales: int, score: float) -> list[list[float]]:
    """Pruning tendency of every token, q_i = (scale / scales) * score * Ĥ_i, with Ĥ of mean 1; the highest go first.

    ``entropy_map`` is h rows of w head-mean entropies; a map of zeros counts as even. The mean of q is
    ``(scale / scales) * score``, which is what `keep_count` counts with.
    """
    values = [value for row in entropy_map for value in row]
    mean = sum(values) / len(values)
    factor = scale / scales * score
    return [[factor * (value / mean if mean > 0 else 1.0) for value in row] for row in entropy_map]


class _Damage:
    """Predicted image damage and number of pruned tokens per scale, for given thresholds."""

    def __init__(
        self,
        sites: Sites,
        base: Plan,
        scales: Sequence[int],
        factors: Mapping[int, float],
        powers: Mapping[int, float],
    ) -> None:
        self.base, self.scales = base, scales
        self.curves = {
            (scale, layer): curve
            for scale in scales
            for layer in range(len(base.layers))
            if (curve := _curve(sites.get((scale, layer), {}), base.tokens(scale))) is not None
        }
        # A scale that was not probed takes the law of the nearest one, the later of two.
        near = {scale: min(factors, key=lambda known: (abs(known - scale), -known)) for scale in scales}
        self.laws = {scale: (factors[near[scale]], powers[near[scale]]) for scale in scales}

    def measured(self, scale: int, scores: Sequence[float]) -> bool:
        """Whether the error of pruning is known in every layer that is not kept."""
        return all((scale, layer) in self.curves for layer, score in enumerate(scores) if score > 0)

    def at(self, thresholds: Thresholds, scale: int, weights: Sequence[float]) -> tuple[int, float]:
        """(pruned tokens of all layers, damage) of a scale."""
        tokens = self.base.tokens(scale)
        pruned, error = 0, 0.0
        for layer, weight in enumerate(weights):
            gone = tokens - keep_count(thresholds, scale, layer, tokens, self.base.scales)
            if gone:
                pruned += gone
                error += weight * float(np.interp(gone / tokens, *self.curves[scale, layer]))
        factor, power = self.laws[scale]
        return pruned, factor * error**power if error > 0 else 0.0


def _curve(sums: Mapping[str, Any], tokens: int) -> tuple[list[float], list[float]] | None:
    """Pruned shares, from 0 on, and squared relative errors of a site; None where none were measured.

    Shares are those that were really pruned: on a small grid round(share * N) is rough.
    """
    if "prune" not in sums:
        return None
    norm = max(sum(sums["norm"]), 1e-30)
    points = {0.0: 0.0} | {round(share * tokens) / tokens: sums["prune"][f"{share:g}"][0] / norm for share in SHARES}
    return list(points), list(points.values())


def _rounded(table: list[list[float]]) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in table]


class _Candidate(NamedTuple):
    pruned: int
    damage: float
    start: int
    low: float
    high: float

    @property
    def rank(self) -> tuple[float, ...]:
        # Most tokens first; of equal ones the least damage, then the later start and the smaller alphas.
        return self.pruned, -self.damage, self.start, -self.high, -self.low


def _candidates(damage: _Damage, layers: Layers, starts: Sequence[int], weights: Sequence[float]) -> list[_Candidate]:
    found = []
    for low in ALPHAS:
        for high in (alpha for alpha in ALPHAS if alpha >= low):
            thresholds = Thresholds(
                alpha_min=low, alpha_max=high, start=min(starts), scores=layers.scores, min_keep=MIN_KEEP
            )
            pruned, lost = 0, 0.0
            for scale in range(damage.base.scales, min(starts) - 1, -1):
                more, worse = damage.at(thresholds, scale, weights)
                pruned, lost = pruned + more, lost + worse
                if scale in starts:
                    found.append(_Candidate(pruned, lost, scale, low, high))
    return found


def choose_thresholds(
    sites: Sites,
    base: Plan,
    layer_weights: Sequence[float],
    factors: Mapping[int, float],
    powers: Mapping[int, float],
    max_damage: float,
) -> tuple[Thresholds, dict[str, Any]]:
    """The thresholds that prune the most tokens at a predicted damage of at most ``max_damage``, and their curves.

    Scale: tau is midway between the records of rho, and D must come after the representative scale, which tells the
    layers apart; see `reachable`. Layers: `classify`. Tokens: every pair of alphas of `ALPHAS`, with every D. Damage is
    the sum over scales of ``factor * (sum over layers of weight * squared relative error) ** power``, as for sparse
    attention; errors between the measured shares are interpolated, and scales without a factor take the nearest
    scale's. Of choices that prune equally many, the least damage counts, then the later D and the smaller alphas.

    Args:
        sites: (scale, layer) to sums over prompts: ``rho``, ``calls``, ``norm``, ``prune``, ``entropy_map``.
        base: the all-dense plan.
        layer_weights: [L].
        factors: scale to factor; at least one.
        powers: of the same scales.
        max_damage: mean squared error of the image.

    Returns:
        The thresholds, unset where nothing may be pruned, and JSON values: ``representative``; ``rho`` per scale;
        ``depth`` [[tau, D or null]]; per layer ``ratio`` (null for infinite), ``classes``, ``scores``,
        ``entropy_maps`` [h][w] and ``importance`` [h][w] (null where the layer is kept); ``beta`` and
        ``split_share``; ``score_curve``, beta to R per layer; ``tau``, ``start`` and ``alpha`` as chosen;
        ``alpha_curve`` over alpha_max, with alpha_min 0, at the chosen D or else the latest; ``prune_error``, scale to
        layer to share to relative error (not squared); ``notes``: why not more.
    """
    seen = _survey(sites, base)
    layers, notes = seen.layers, seen.notes
    taus = {start: tau for start, tau in reachable(seen.rho).items() if start > (seen.representative or 0)}
    if not taus:
        notes.append(
            "rho reaches no new height after the representative scale: no tau starts there, no scale is pruned"
        )
    damage = _Damage(sites, base, range(min(taus, default=base.scales + 1), base.scales + 1), factors, powers)
    unknown = max((scale for scale in damage.scales if not damage.measured(scale, layers.scores)), default=0)
    starts = [start for start in taus if start > unknown]
    if unknown:
        notes.append(f"the error of pruning was not measured at scale {unknown}: pruning starts later, if at all")
    candidates = _candidates(damage, layers, starts, layer_weights) if starts and any(layers.scores) else []
    allowed = [one for one in candidates if one.pruned and one.damage <= max_damage]
    best = max(allowed, key=lambda one: one.rank, default=None)
    if candidates and best is None:
        least = min((one.damage for one in candidates if one.pruned), default=0.0)
        notes.append(f"the least pruning is predicted to cost {least:.3g}, more than {max_damage:.3g}")
    thresholds = Thresholds()
    if best is not None:
        thresholds = Thresholds(
            tau=taus[best.start],
            beta=layers.beta,
            alpha_min=best.low,
            alpha_max=best.high,
            start=best.start,
            representative=seen.representative,
            scores=layers.scores,
            min_keep=MIN_KEEP,
        )
    shown = (best.start if best is not None else max(starts, default=0), 0.0)
    every = len(base.layers) * sum(base.tokens(scale) for scale in range(1, base.scales + 1))
    return thresholds, {
        "representative": seen.representative,
        "rho": {str(scale): share for scale, share in seen.rho.items()},
        "depth": _depth(seen.rho, thresholds.tau),
        "ratio": [ratio if math.isfinite(ratio) else None for ratio in seen.ratios],
        "beta": layers.beta,
        "split_share": layers.share,
        "score_curve": score_curve(seen.ratios, layers.beta),
        "scores": list(layers.scores),
        "classes": list(layers.classes),
        "tau": thresholds.tau,
        "start": thresholds.start,
        "alpha": None if best is None else {**_point(best, every), "alpha_min": best.low, "min_keep": MIN_KEEP},
        "alpha_curve": [_point(one, every) for one in candidates if (one.start, one.low) == shown],
        "max_damage": max_damage,
        "notes": notes,
        "entropy_maps": [_rounded(found.tolist()) for found in seen.maps],
        "importance": [
            _rounded(importance(found.tolist(), seen.representative or 1, base.scales, score)) if score else None
            for found, score in zip(seen.maps, layers.scores, strict=False)
        ],
        "prune_error": _prune_error(sites),
    }


class _Seen(NamedTuple):
    """What was observed: rho per scale; per layer mean entropy map [h, w] (nats), its ratio, and what follows."""

    representative: int | None
    rho: dict[int, float]
    maps: list[Tensor]
    ratios: list[float]
    layers: Layers
    notes: list[str]


def _survey(sites: Sites, base: Plan) -> _Seen:
    count = len(base.layers)
    rho = {scale: _mean_rho(sites, scale) for scale in sorted({scale for scale, _ in sites})}
    representative = next((scale for scale, layer in sorted(sites) if "entropy_map" in sites[scale, layer]), None)
    if representative is None:
        kept = Layers(None, ("ambiguous",) * count, (0.0,) * count, 0.0)
        return _Seen(None, rho, [], [], kept, ["no entropy map was observed: all layers are kept"])
    observed = [sites[representative, layer] for layer in range(count)]
    grid = base.grid(representative)
    maps = [torch.tensor(sums["entropy_map"]).double().reshape(grid) / sums["calls"][0] for sums in observed]
    ratios = [map_ratio(entropy_map) for entropy_map in maps]
    layers = classify(ratios)
    notes = []
    if layers.beta is None:
        notes.append("the layers do not part into two kinds: all are ambiguous and kept")
    elif "detail" not in layers.classes:
        notes.append("no layer is clearly a detail layer: all are kept")
    return _Seen(representative, rho, maps, ratios, layers, notes)


def _mean_rho(sites: Sites, scale: int) -> float:
    found = [sums for (at, _), sums in sites.items() if at == scale]
    return float(sum(sums["rho"][0] for sums in found) / sum(sums["calls"][0] for sums in found))


def _depth(rho: Mapping[int, float], tau: float | None) -> list[list[float | int | None]]:
    taus = {step / 100 for step in range(30, 71)} | ({tau} if tau is not None else set())
    return [[value, start_scale(rho, value)] for value in sorted(taus)]


def _point(one: _Candidate, every: int) -> dict[str, float]:
    """``pruned_share`` is of the tokens of all scales and layers."""
    return {"alpha_max": one.high, "pruned_share": one.pruned / every, "damage": one.damage}


def _prune_error(sites: Sites) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (scale, layer), sums in sorted(sites.items()):
        if "prune" in sums:
            norm = max(sum(sums["norm"]), 1e-30)
            errors = {share: math.sqrt(values[0] / norm) for share, values in sums["prune"].items()}
            table.setdefault(str(scale), {})[str(layer)] = errors
    return table
