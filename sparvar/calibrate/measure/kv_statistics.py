"""What ScaleKV and HACK measure before they give out budgets: selectivity of layers, column variance of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.models.subject import Subject
from sparvar.runtime.generation import SiteContext
from sparvar.runtime.hooks import Hook
from sparvar.runtime.kv_compression.key_scores import observation_queries, weights_of
from sparvar.scale_plans import Plan

QUERIES = 64
"""Observation queries per scale: the full matrix of the last scale would hold 43 million weights per head."""
TOP_SHARE = 1 / 8
"""Share of the history whose attention counts as concentrated (ScaleKV's top k)."""


class KVStatistics(Hook):
    """Sees dense attention of whole generations and adds up its statistics, in float64.

    Attributes:
        scales: those with a history.
        selectivity: per layer, scale -> mean attention to the scale itself times mean attention to the top keys of its
            history, mean over rows and heads (ScaleKV, equation 5).
        variance: per layer and key head, variance over queries of the attention to a key, summed over the keys of the
            last scale (HACK).
    """

    def __init__(self, plan: Plan, top_share: float = TOP_SHARE) -> None:
        self.plan, self.top_share = plan, top_share
        self.scales = tuple(range(2, plan.scales + 1))
        self._sums: list[dict[int, float]] = [dict.fromkeys(self.scales, 0.0) for _ in plan.layers]
        self._counts: list[dict[int, int]] = [dict.fromkeys(self.scales, 0) for _ in plan.layers]
        self._variance: dict[int, Tensor] = {}

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        plan, number = self.plan, site.scale
        observed = query[:, :, observation_queries(plan.grid(number), QUERIES, query.device)]
        weights = weights_of(observed, key, scale)
        history = weights[..., : plan.offset(number)]
        count = max(1, round(self.top_share * history.shape[-1]))
        own = weights[..., plan.offset(number) :].sum(-1).double().mean(-1)
        top = history.topk(count, dim=-1).values.sum(-1).double().mean(-1)
        self._sums[site.layer][number] += float((own * top).mean())
        self._counts[site.layer][number] += 1
        if number == plan.scales:
            spread = weights.double().var(dim=2, correction=0).sum(-1).mean(0)
            self._variance[site.layer] = self._variance.get(site.layer, torch.zeros_like(spread)) + spread
        return super().attention(site, query, key, value, scale)

    @property
    def selectivity(self) -> list[dict[int, float]]:
        """Per layer, scale -> selectivity."""
        pairs = zip(self._sums, self._counts, strict=True)
        return [{scale: total / counts[scale] for scale, total in sums.items()} for sums, counts in pairs]

    @property
    def variance(self) -> list[list[float]]:
        """Per layer and key head, sum over generations."""
        return [[float(each) for each in self._variance[layer]] for layer in range(len(self.plan.layers))]


def kv_statistics(
    subject: Subject, prompts: Sequence[Any], seed: int = 0, inner: str = "eager", plan: Plan | None = None
) -> KVStatistics:
    """Statistics of one dense generation per prompt, with seeds from ``seed`` on; the model is detached again.

    ``plan`` is all dense and names the layers that are looked at, every attention of the model where it is None.
    """
    plan = base_plan(subject) if plan is None else plan
    statistics = KVStatistics(plan)
    compile(subject.model, plan, inner=inner)
    try:
        attachment = attachment_of(subject.model)
        assert attachment is not None
        with attachment.hooked(statistics):
            for number, prompt in enumerate(prompts):
                subject.draw(subject.model, prompt, seed + number)
    finally:
        detach(subject.model)
    return statistics
