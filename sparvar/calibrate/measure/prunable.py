"""Where pruning is possible at all: layers by the singular values of their entropy maps, scales by their rho."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparvar.scale_plans import layer_score, start_scale

DETAIL, GLOBAL = 0.75, 0.25
"""Scores of detail layers are at least, of global ones at most these; what lies between is ambiguous and kept."""
WEAK = 0.5
"""Share of variance between the two classes below which the split means nothing."""
LEAST = 1e-6
"""Of ratio - 1, before its logarithm is taken."""


def map_ratio(entropy_map: Tensor) -> float:
    """sigma1 / sigma2 of an entropy map [h, w]; infinity where it is of rank one (or zero), as any single row is."""
    sigma = torch.linalg.svdvals(entropy_map.double()).tolist()
    rounding = torch.finfo(torch.float64).eps * max(entropy_map.shape)
    if len(sigma) < 2 or sigma[1] <= rounding * sigma[0]:
        return math.inf
    return float(sigma[0] / sigma[1])


def otsu(values: Sequence[float]) -> tuple[float, float]:
    """(split, share): the value between two of ``values`` that parts them best, and the share of variance between.

    Best by the variance between the two classes, the lowest split of equal ones; 0 is the share of values that are all
    the same.
    """
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered)
    whole = sum((value - mean) ** 2 for value in ordered)
    best = (ordered[0], 0.0)
    for at in range(1, len(ordered)):
        low, high = ordered[:at], ordered[at:]
        between = sum(len(part) * (sum(part) / len(part) - mean) ** 2 for part in (low, high))
        if low[-1] < high[0] and between > best[1] * whole:
            best = ((low[-1] + high[0]) / 2, between / whole)
    return best


class Layers(NamedTuple):
    """What the layers are: beta, None where there is no split, and class and score of each (0: kept)."""

    beta: float | None
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    share: float


def classify(ratios: Sequence[float]) -> Layers:
    """Detail, global and ambiguous layers by their ratios of singular values.

    The paper publishes no beta. Here the layers are parted in two at the best split (Otsu) of log(ratio - 1), and beta
    is such that the score is 1/2 there. A layer is detail where its score is at least 3/4, so ratio - 1 at most 0.42
    of the split's, and global where it is at most 1/4, ratio - 1 at least twice the split's. Between them, and where
    the split is weak, layers are ambiguous and kept (A.5.4). Evenly spread layers have a share of variance of 3/4 as
    well, so it is mostly these bands that tell two kinds of layers from one: layers that all lie within a factor of
    2.4 below and 2 above the split are all ambiguous.
    """
    finite = _logs(ratios)  # maps of rank one are global wherever the split lies, and would pull it up
    split, share = otsu(finite) if finite else (0.0, 0.0)
    if share < WEAK:  # one layer, or all the same, have a share of 0
        return Layers(None, ("ambiguous",) * len(ratios), (0.0,) * len(ratios), share)
    beta = _rounded(math.log(2) / math.exp(split))
    scores = [layer_score(ratio, beta) for ratio in ratios]
    classes = tuple("detail" if score >= DETAIL else "global" if score <= GLOBAL else "ambiguous" for score in scores)
    kept = tuple(round(score, 4) if score >= DETAIL else 0.0 for score in scores)
    return Layers(beta, classes, kept, share)


def reachable(rho: Mapping[int, float]) -> dict[int, float]:
    """Every D that some tau gives, and the tau midway between rho_D and the highest rho before D (0 before the first).

    They are the scales at which rho is higher than at every earlier one.
    """
    found: dict[int, float] = {}
    highest = 0.0
    for scale in sorted(rho):
        if rho[scale] > highest:
            middle = (rho[scale] + highest) / 2
            rounded = _rounded(middle)
            taus = (rounded, middle, rho[scale])  # the last where two records are neighbouring numbers
            found[scale] = next(tau for tau in taus if start_scale(rho, tau) == scale)
            highest = rho[scale]
    return found


def score_curve(ratios: Sequence[float], beta: float | None) -> dict[str, list[float]]:
    """R per layer for betas around the chosen one; where none was, around that of the median layer's R = 1/2."""
    logs = sorted(_logs(ratios))
    if not logs:
        return {}
    centre = beta if beta is not None else _rounded(math.log(2) / math.exp(logs[len(logs) // 2]))
    betas = [_rounded(centre * 2.0**step) for step in range(-3, 4)]
    return {f"{value:g}": [round(layer_score(ratio, value), 4) for ratio in ratios] for value in betas}


def _logs(ratios: Sequence[float]) -> list[float]:
    """log(ratio - 1) of the finite ones."""
    return [math.log(max(ratio - 1, LEAST)) for ratio in ratios if math.isfinite(ratio)]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
