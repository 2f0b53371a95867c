"""Compressed KV caches against a slow reference of the papers' rules, as a user runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.scale_plans import Plan
from sparvar.zoo.model import LandscapeVAR
from tests.kv_reference import Compression
from tests.kv_reference import generate as slow
from tests.tiny import dense_changes, tiny_model, tiny_plan

LAYERS = [("drafter",), ("refiner",), ("refiner",)]
KEEP = {3: {"drafter": 11, "refiner": 8}, 4: {"drafter": 20, "refiner": 10}, 5: {"drafter": 24, "refiner": 12}}
HEADS = [("contextual", "structural"), ("structural",), ("contextual",)]
HEAD_KEEP = {4: {"contextual": 14, "structural": 22}, 5: {"contextual": 15, "structural": 30}}
CASES: dict[str, Compression] = {
    "scalekv": Compression("scalekv", LAYERS, KEEP, 2),
    "scalekv, more queries, pooled": Compression("scalekv", LAYERS, KEEP, 2, queries=64, pool=3),
    "scalekv, one layer whole, no sinks": Compression("scalekv", [("drafter",), ("whole",), ("refiner",)], KEEP, 0),
    "scalekv, gaps": Compression("scalekv", LAYERS, {2: {"drafter": 5, "refiner": 3}, 5: KEEP[5]}, 1),
    "hack": Compression("hack", HEADS, HEAD_KEEP, 2),
    "local": Compression("local", [("local",)] * 3, {4: {"local": 14}, 5: {"local": 41}}, 2),
    "local, part of a scale": Compression("local", [("local",)] * 3, {4: {"local": 14}, 5: {"local": 17}}, 2),
}


def kv_fields(what: Compression, **more: Any) -> dict[str, Any]:
    """The fields of a plan that drops the same."""
    kv = {
        "method": what.method,
        "kinds": [list(kinds) for kinds in what.kinds],
        "keep": {scale: dict(counts) for scale, counts in what.keep.items()},
        "queries": what.queries,
        "pool": what.pool,
        **more,
    }
    return {"sink_scales": what.sink_scales, "kv": kv}


def drawn(model: LandscapeVAR, plan: Plan, labels: tuple[str, ...] = ("mountain",), **options: Any) -> Tensor:
    sparvar.compile(model, plan, inner="eager", **options)
    try:
        return model.generate(list(labels), seed=50)
    finally:
        sparvar.detach(model)


@pytest.fixture(scope="module")
def model() -> LandscapeVAR:
    return tiny_model()


@pytest.mark.parametrize("name", CASES)
def test_dense_attention_of_what_is_left(model: LandscapeVAR, name: str) -> None:
    what = CASES[name]
    image = drawn(model, tiny_plan(model, **{**dense_changes(), **kv_fields(what)}))
    assert not torch.allclose(image, model.generate(["mountain"], seed=50), atol=1e-3), "nothing was dropped"
    torch.testing.assert_close(image, slow(model, "mountain", 50, what)[0], rtol=1e-4, atol=1e-5)
