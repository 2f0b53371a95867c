"""Statistics and budgets of KV compression, on a small model."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.measure.kv_statistics import kv_statistics
from sparvar.calibrate.search.kv_search import KVSearch, calibrate_kv, least_budget
from sparvar.models.subject import Subject
from sparvar.runtime.kv_compression.key_scores import even_order, observation_queries
from sparvar.scale_plans import local
from tests.tiny import tiny_model


def draw(model: Any, prompt: Any, seed: int) -> Tensor:
    image: Tensor = model.generate([prompt], seed=seed)[0]
    return image


def subject(sides: tuple[int, ...] = (1, 2, 3, 4)) -> Subject:
    model = tiny_model(sides=sides, depth=2)
    return Subject(model, draw, model.schedule, heads=2, head_dim=64)


def test_statistics_are_those_of_the_whole_matrix() -> None:
    """Grids of at most 64 cells: every query is observed, so that the papers' sums can be taken literally."""
    small = subject()
    measured = kv_statistics(small, ["sea"], seed=3)
    seen: dict[tuple[int, int], Tensor] = {}
    scales = {count: number for number, count in enumerate((1, 4, 9, 16), start=1)}
    plain = torch.nn.functional.scaled_dot_product_attention
    order: list[int] = []

    def record(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        number = scales[q.shape[2]]
        seen[order.count(number), number] = torch.softmax(q @ k.transpose(2, 3) * scale, -1)
        order.append(number)
        return plain(q, k, v, scale=scale)

    torch.nn.functional.scaled_dot_product_attention = record
    try:
        small.draw(small.model, "sea", 3)
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    for layer in range(2):
        for number, history in ((2, 1), (3, 5), (4, 14)):
            weights = seen[layer, number].double()
            own = weights[..., history:].sum(-1).mean(-1)
            top = weights[..., :history].topk(max(1, round(history / 8)), -1).values.sum(-1).mean(-1)
            assert math.isclose(measured.selectivity[layer][number], float((own * top).mean()), rel_tol=1e-4)
        spread = seen[layer, 4].double().var(2, correction=0).sum(-1).mean(0)
        torch.testing.assert_close(
            torch.tensor(measured.variance[layer], dtype=torch.float64), spread, rtol=1e-4, atol=0
        )


def test_least_budget() -> None:
    asked: list[int] = []

    def quality(budget: int) -> float:
        asked.append(budget)
        return 10 * math.log10(budget)

    found = least_budget(quality, 10, 10_000, 25.0, 6)
    assert found is not None and 10**2.5 <= found < 1.2 * 10**2.5
    assert len(asked) == 8
    assert least_budget(quality, 10, 100, 25.0, 6) is None
    assert least_budget(quality, 1000, 5000, 25.0, 6) == 1000


def test_calibration_keeps_the_quality_or_says_that_it_cannot() -> None:
    small = subject()
    base = base_plan(small).replace(sink_scales=1)
    plan, tried = calibrate_kv(small, base, partial(local, base), ["sea"], 5.0, KVSearch(4, 13, steps=1))
    assert plan is not None and plan.kv is not None and min(tried) == 4
    best, tried = calibrate_kv(small, base, partial(local, base), ["sea"], 1000.0, KVSearch(4, 13))
    assert best is None and list(tried) == [13]


def test_observers_and_even_order() -> None:
    assert observation_queries((4, 6), 4, torch.device("cpu")).tolist() == [7, 10, 19, 22]
    assert observation_queries((1, 3), 16, torch.device("cpu")).tolist() == [0, 1, 2]
    order = even_order((4, 4), torch.device("cpu")).view(4, 4)
    assert sorted(order.flatten().tolist()) == list(range(16))
    assert sorted(order[::2, ::2].flatten().tolist()) == [0, 1, 2, 3], "every other row and column comes first"
