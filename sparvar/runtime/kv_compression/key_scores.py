"""Which keys of a cache matter: the rules of the KV compression papers, on the keys that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.scale_plans import Plan


def observation_queries(grid: tuple[int, int], count: int, device: torch.device) -> Tensor:
    """Tokens at the centres of ``count`` (a square number) equal patches of a grid (h, w): int64 [n], n <= count.

    An axis shorter than sqrt(count) has one patch per cell. ScaleKV, section 3.3: observation window of 16.
    """
    side = math.isqrt(count)
    rows, columns = (
        torch.tensor([(2 * i + 1) * size // (2 * min(side, size)) for i in range(min(side, size))], device=device)
        for size in grid
    )
    return (rows[:, None] * grid[1] + columns).flatten()


def weights_of(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention of queries [B, H, n, D] to keys [B, Hkv, T, D], float32 [B, Hkv, n * H / Hkv, T]."""
    heads, shared = query.shape[1], key.shape[1]
    grouped = query.unflatten(1, (shared, heads // shared)).flatten(2, 3)
    return torch.softmax((grouped @ key.transpose(2, 3)).float() * scale, dim=-1)


def attention_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean attention of queries [B, H, n, D] to each key of [B, Hkv, T, D], float32 [B, Hkv, T].

    Query heads that share a key head are averaged. Only n rows of the attention matrix exist.
    """
    return weights_of(query, key, scale).mean(2)


def pooled(scores: Tensor, size: int) -> Tensor:
    """Mean of ``size`` (odd) neighbours along the last axis, fewer at its ends."""
    if size == 1:
        return scores
    return F.avg_pool1d(scores, size, stride=1, padding=size // 2, count_include_pad=False)


def top(scores: Tensor, count: int) -> Tensor:
    """Places of the ``count`` highest scores of [..., T], ascending, int64 [..., count]; of equals the first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count].sort(dim=-1).values


def even_order(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Rank of every cell of a grid (h, w) in an order whose every beginning lies evenly over it: int64 [N].

    Coordinates with their bits reversed, interleaved as in a Morton curve.
    """
    bits = max(1, (max(grid) - 1).bit_length())
    y, x = (torch.arange(size, device=device) for size in grid)
    key = torch.zeros(grid, dtype=torch.int64, device=device)
    for bit in range(bits):
        low = 2 * (bits - 1 - bit)
        key += (((y >> bit & 1) ^ 0)[:, None] << low + 1) + ((x >> bit & 1)[None, :] << low)
    return key.flatten().argsort(stable=True).argsort(stable=True)


def rank_scores(plan: Plan, scale: int, places: Tensor) -> Tensor:
    """Scores of ``local`` for keys in whole places [..., T]: later scales first, an even order within each scale."""
    device = places.device
    score = torch.zeros(plan.keys(scale), dtype=torch.float64, device=device)
    for each in range(1, scale + 1):
        begin, tokens = plan.offset(each), plan.tokens(each)
        score[begin : begin + tokens] = each - even_order(plan.grid(each), device).double() / tokens
    return score[places]


def structural_scores(scores: Tensor, latest: int, free: int) -> Tensor:
    """Scores of structural heads [..., T]: the ``latest`` last keys first, then the highest of those between (HACK).

    ``free`` keys may stay beside the sinks. Where the latest scale would take more than half of them, its highest
    scores take half.
    """
    share = min(latest, max(1, free // 2))
    recent = top(scores[..., -latest:], share) + scores.shape[-1] - latest
    raised = scores.clone()
    raised[..., -latest:] = 0.0
    raised.scatter_(-1, recent, 2.0)  # above every attention weight, below the sinks
    return raised


def chosen_keys(plan: Plan, scale: int, kinds: Sequence[str], scores: Tensor, places: Tensor, count: int) -> Tensor:
    """Keys that stay in a layer's cache after a scale, places in the cache ascending: int64 [B, Hkv, count].

    Args:
        kinds: of the layer, one or one per key head.
        scores: mean attention [B, Hkv, T] of the keys in the cache.
        places: their whole places [B, Hkv, T].
    """
    assert plan.kv is not None
    scores = pooled(scores, plan.kv.pool)
    if "structural" in kinds:
        free = count - plan.sinks_at(scale)
        structural = structural_scores(scores, plan.tokens(scale), free)
        heads = torch.tensor([kind == "structural" for kind in kinds], device=scores.device)
        scores = torch.where(heads[:, None], structural, scores)
    return top(scores.masked_fill(places < plan.sinks, float("inf")), count)
