"""What the entropy thresholds of a plan mean: ToProVAR's quantities as functions of numbers.

The paper leaves two things open, which are fixed here. Entropies are normalised to mean 1 instead of sum 1: with sum 1
the pruning tendency q of Eq. (6) is of the order 1/N and the rule constant. And a (layer, scale) keeps a fixed number
of tokens, the mean of the paper's keep probabilities, instead of drawing each: shapes stay static.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparvar.scale_plans.data import Thresholds


def start_scale(rho: Mapping[int, float], tau: float) -> int | None:
    """D = min{s : rho_s >= tau}: the scale at which pruning may start (ToProVAR, section 4).

    Args:
        rho: scale to share of low-entropy queries, |{i : H_i < mean H}| / N_s (Eq. 3).
        tau: the threshold; 0.4 in the paper, A.2.

    Returns:
        The scale, or None where rho never reaches tau: no scale is pruned then (fallback of A.5.4).
    """
    return min((scale for scale, share in rho.items() if share >= tau), default=None)


def layer_score(ratio: float, beta: float) -> float:
    """R = exp(-beta * (ratio - 1)), Eq. (4): near 1 for Detail layers, near 0 for Global ones.

    ``ratio`` is sigma1/sigma2 of the layer's entropy map, at least 1; infinity (a map of rank one) gives 0. ``beta``
    is above 0.
    """
    return math.exp(-beta * (ratio - 1))


def keep_count(thresholds: Thresholds, scale: int, layer: int, tokens: int, scales: int) -> int:
    """The fixed number of tokens that a layer keeps at a scale, Eq. (6) in the mean.

    The pruned share is ``alpha_min + (alpha_max - alpha_min) * mean(q)``, clipped to [0, 1], with the pruning tendency
    q_i = (scale / scales) * R * Ĥ_i and Ĥ the head-mean entropies normalised to mean 1, so that mean(q) is
    ``(scale / scales) * R``. The tokens pruned are those of highest head-mean entropy. At least ``min_keep`` of the
    tokens stay, rounded up. Every token stays where nothing is to be pruned: before ``start`` or without one, in
    layers with score 0, or where alphas or scores are not set.

    Args:
        thresholds: of a sound plan.
        scale: from 1.
        layer: from 0.
        tokens: N of the scale.
        scales: K, the paper's S_max.
    """
    low, high = thresholds.alpha_min, thresholds.alpha_max
    if thresholds.start is None or scale < thresholds.start or low is None or high is None or not thresholds.scores:
        return tokens
    score = thresholds.scores[layer]
    if score == 0:
        return tokens
    share = min(max(low + (high - low) * (scale / scales) * score, 0.0), 1.0)
    # ceil with a share of a millionth of a token forgiven: 0.1 * 30 is 3.0000000000000004
    least = math.ceil((thresholds.min_keep or 0.0) * tokens - 1e-6)
    return max(tokens - round(tokens * share), least)
