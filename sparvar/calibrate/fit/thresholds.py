"""Thresholds of pruning by ToProVAR's quantities: where it may start (tau), in which layers (beta), how much (alphas).

Nothing is pruned here. What the thresholds mean is in `sparvar.scale_plans`: `start_scale`, `layer_score` and
`keep_count`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparvar.calibrate.fit.predict import Sensitivity
from sparvar.calibrate.measure.prunable import Layers, classify, map_ratio, reachable, score_curve
from sparvar.calibrate.measure.pruning import SHARES
from sparvar.scale_plans import Plan, Thresholds, keep_count, start_scale

ALPHAS = tuple(step / 10 for step in range(10))
MIN_KEEP = 0.1
"""The least that is kept: beyond 1 - min_keep no error was measured."""

Sites = Mapping[tuple[int, int], dict[str, Any]]


def importance(entropy_map: Sequence[Sequence[float]], scale: int, scales: int, score: float) -> list[list[float]]:
    """Pruning tendency of every token, q_i = (scale / scales) * score * Ĥ_i, with Ĥ of mean 1; the highest go first.

    ``entropy_map`` is h rows of w head-mean entropies; a map of zeros counts as even. The mean of q is
    ``(scale / scales) * score``, which is what `keep_count` counts with.
    """
    values = [value for row in entropy_map for value in row]
    mean = sum(values) / len(values)
    factor = scale / scales * score
    return [[factor * (value / mean if mean > 0 else 1.0) for value in row] for row in entropy_map]


class _PredictedMse:
    """Predicted image MSE and number of pruned tokens per scale, for given thresholds."""

    def __init__(self, sites: Sites, base: Plan, scales: Sequence[int], sensitivity: Sensitivity) -> None:
        self.base, self.scales = base, scales
        self.curves = {
            (scale, layer): curve
            for scale in scales
            for layer in range(len(base.layers))
            if (curve := _curve(sites.get((scale, layer), {}), base.tokens(scale))) is not None
        }
        self.laws = sensitivity.at_scales(scales)

    def measured(self, scale: int, scores: Sequence[float]) -> bool:
        """Whether the error of pruning is known in every layer that is not kept."""
        return all((scale, layer) in self.curves for layer, score in enumerate(scores) if score > 0)

    def at(self, thresholds: Thresholds, scale: int) -> tuple[int, float]:
        """(pruned tokens of all layers, image MSE) of a scale."""
        tokens = self.base.tokens(scale)
        pruned, error = 0, 0.0
        for layer, weight in enumerate(self.laws.weights):
            gone = tokens - keep_count(thresholds, scale, layer, tokens, self.base.scales)
            if gone:
                pruned += gone
                error += weight * float(np.interp(gone / tokens, *self.curves[scale, layer]))
        factor, power = self.laws.factors[scale], self.laws.powers[scale]
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
    image_mse: float
    start: int
    low: float
    high: float

    @property
    def rank(self) -> tuple[float, ...]:
        # Most tokens first; of equal ones the least MSE, then the later start and the smaller alphas.
        return self.pruned, -self.image_mse, self.start, -self.high, -self.low


def _candidates(predicted: _PredictedMse, layers: Layers, starts: Sequence[int]) -> list[_Candidate]:
    found = []
    for low in ALPHAS:
        for high in (alpha for alpha in ALPHAS if alpha >= low):
            thresholds = Thresholds(
                alpha_min=low, alpha_max=high, start=min(starts), scores=layers.scores, min_keep=MIN_KEEP
            )
            pruned, lost = 0, 0.0
            for scale in range(predicted.base.scales, min(starts) - 1, -1):
                more, worse = predicted.at(thresholds, scale)
                pruned, lost = pruned + more, lost + worse
                if scale in starts:
                    found.append(_Candidate(pruned, lost, scale, low, high))
    return found


def choose_thresholds(
    sites: Sites, base: Plan, sensitivity: Sensitivity, max_image_mse: float
) -> tuple[Thresholds, dict[str, Any]]:
    """The thresholds that prune the most tokens at a predicted image MSE of at most ``max_image_mse``, and why.

    Scale: tau is midway between the records of rho, and D must come after the representative scale, which tells the
    layers apart; see `reachable`. Layers: `classify`. Tokens: every pair of alphas of `ALPHAS`, with every D. The MSE
    is the sum over scales of ``factor * (sum over layers of weight * squared relative error) ** power``, as for sparse
    attention; errors between the measured shares are interpolated, and scales without a factor take the nearest
    scale's. Of choices that prune equally many, the least MSE counts, then the later D and the smaller alphas.

    Args:
        sites: (scale, layer) to sums over prompts: ``rho``, ``calls``, ``norm``, ``prune``, ``entropy_map``.
        base: the all-dense plan.
        sensitivity: image MSE of errors of attention, at one scale at least.
        max_image_mse: mean squared error of the image.

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
    scales = range(min(taus, default=base.scales + 1), base.scales + 1)
    predicted = _PredictedMse(sites, base, scales, sensitivity)
    unknown = max((scale for scale in scales if not predicted.measured(scale, layers.scores)), default=0)
    starts = [start for start in taus if start > unknown]
    if unknown:
        notes.append(f"the error of pruning was not measured at scale {unknown}: pruning starts later, if at all")
    candidates = _candidates(predicted, layers, starts) if starts and any(layers.scores) else []
    allowed = [one for one in candidates if one.pruned and one.image_mse <= max_image_mse]
    best = max(allowed, key=lambda one: one.rank, default=None)
    if candidates and best is None:
        least = min((one.image_mse for one in candidates if one.pruned), default=0.0)
        notes.append(f"the least pruning is predicted to cost {least:.3g}, more than {max_image_mse:.3g}")
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
        "max_image_mse": max_image_mse,
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
    return {"alpha_max": one.high, "pruned_share": one.pruned / every, "image_mse": one.image_mse}


def _prune_error(sites: Sites) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (scale, layer), sums in sorted(sites.items()):
        if "prune" in sums:
            norm = max(sum(sums["norm"]), 1e-30)
            errors = {share: math.sqrt(values[0] / norm) for share, values in sums["prune"].items()}
            table.setdefault(str(scale), {})[str(layer)] = errors
    return table
