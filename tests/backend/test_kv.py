"""Compressed KV caches against a slow reference of the papers' rules, as a user runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar.errors import SessionError
from sparvar.runtime.kv_compression.compressor import Compressor
from sparvar.scale_plans import Plan, held_share, peak_share
from sparvar.zoo.model import LandscapeVAR
from tests.kv_reference import Compression
from tests.kv_reference import generate as slow
from tests.tiny import dense_changes, full_window_changes, tiny_model, tiny_plan

LAYERS = [("drafter",), ("refiner",), ("refiner",)]
KEEP = {3: {"drafter": 11, "refiner": 8}, 4: {"drafter": 20, "refiner": 10}, 5: {"drafter": 24, "refiner": 12}}
HEADS = [("contextual", "structural"), ("structural",), ("contextual",)]
HEAD_KEEP = {4: {"contextual": 14, "structural": 22}, 5: {"contextual": 15, "structural": 30}}
CASES: dict[str, Compression] = {
    "scalekv": Compression("scalekv", LAYERS, KEEP, 2),
    "scalekv, more queries, pooled": Compression("scalekv", LAYERS, KEEP, 2, queries=64, pool=3),
    "scalekv, one layer whole, no sinks": Compression("scalekv", [("drafter",), ("whole",), ("refiner",)], KEEP, 0),
    "scalekv, gaps": Compression("scalekv", LAYERS, {2: {"drafter": 5, "refiner": 3}, 5: KEEP[5]}, 1),
    "scalekv, stored in bfloat16": Compression("scalekv", LAYERS, KEEP, 2, rounded=True),
    "scalekv, bfloat16 before any is dropped": Compression(
        "scalekv", LAYERS, {3: {"drafter": 14, "refiner": 14}, 5: KEEP[5]}, 2, rounded=True
    ),
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
        "store": "bfloat16" if what.rounded else "same",
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


def test_a_sparse_list_of_every_key_reads_the_compact_cache(model: LandscapeVAR) -> None:
    """Windows over everything: lists in whole places, translated, must give dense attention of what is left."""
    what = CASES["scalekv"]
    image = drawn(model, tiny_plan(model, **{**full_window_changes(), **kv_fields(what)}))
    torch.testing.assert_close(image, slow(model, "mountain", 50, what)[0], rtol=1e-3, atol=1e-4)


def test_mapped_columns_read_the_compact_cache(model: LandscapeVAR) -> None:
    """What is dropped is in no list, so that the image is that of the whole cache.

    Scales 1 and 2 are sinks. Of the decision scale's keys 3 is mapped to 4 and 4 to 5, for scale 6 to 5 and 6.
    """
    mapped = {
        "layers": ["cs4a"] * 3,
        "decision_scale": 4,
        "cs4a": {5: {"budget": 1.0, "window": 11}, 6: {"budget": 1.0, "window": 15}},
        "csla": {},
        "index_map": "footprint",
        "sink_scales": 2,
    }
    whole = drawn(model, tiny_plan(model, **mapped))
    assert not torch.allclose(whole, model.generate(["mountain"], seed=50), atol=1e-3)
    what = Compression("local", [("local",)] * 3, {4: {"local": 21}, 5: {"local": 41}}, 2)
    image = drawn(model, tiny_plan(model, **{**mapped, **kv_fields(what)}))
    torch.testing.assert_close(image, whole, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model: LandscapeVAR) -> None:
    plan = tiny_plan(model, **{**dense_changes(), **kv_fields(CASES["hack"])})
    both = drawn(model, plan, ("mountain", "sea"))
    torch.testing.assert_close(both[:1], drawn(model, plan), rtol=1e-4, atol=1e-5)


def test_with_conditional_rows_alone(model: LandscapeVAR) -> None:
    what = CASES["scalekv"]
    changes = {**dense_changes(), **kv_fields(what), "guidance": {"conditional_from": 5}}
    image = drawn(model, tiny_plan(model, **changes))
    torch.testing.assert_close(image, slow(model, "mountain", 50, what, conditional_from=5)[0], rtol=1e-4, atol=1e-5)


def test_what_is_held_is_really_smaller(model: LandscapeVAR) -> None:
    """Bytes of the caches on the modules after every scale, and the storages behind them, are those of the plan."""
    what = CASES["scalekv"]
    plan = tiny_plan(model, **{**dense_changes(), **kv_fields(what, store="bfloat16")})
    sizes: list[int] = []

    def look(_: int) -> None:
        caches = [part for block in model.blocks for part in (block.attn.cached_k, block.attn.cached_v)]
        sizes.append(sum(cache.untyped_storage().nbytes() for cache in caches))

    sparvar.compile(model, plan, inner="eager")
    try:
        model.generate(["mountain"], seed=50, on_scale=look)
    finally:
        sparvar.detach(model)
    row = 2 * 2 * 2 * 64  # rows, keys and values, heads, channels
    held = [sum(plan.held(scale, layer) for layer in range(3)) * row * 2 for scale in (3, 4, 5, 6)]
    assert sizes[2:] == held
    assert held == [27 * row * 2, 40 * row * 2, 48 * row * 2, 0]
    assert held_share(plan) == 48 * 2 / (3 * 130 * 4)
    assert peak_share(plan) == ((24 + 64) * 4 + 2 * 12 * 2) / (3 * 130 * 4)


def test_the_most_keys_at_once_are_those_the_plan_says(model: LandscapeVAR) -> None:
    what = CASES["local"]
    plan = tiny_plan(model, **{**dense_changes(), **kv_fields(what)})
    _, most = slow(model, "mountain", 50, what)
    assert most == max(sum(plan.held(scale, layer) for layer in range(3)) for scale in range(1, 7))


def test_plans_in_turn_and_the_model_afterwards(model: LandscapeVAR) -> None:
    before = model.generate(["mountain"], seed=50)
    plans = [tiny_plan(model, **{**dense_changes(), **kv_fields(CASES[name])}) for name in ("hack", "local")]
    first = [drawn(model, plan) for plan in plans]
    assert all(torch.equal(drawn(model, plan), image) for plan, image in zip(plans, first, strict=True))
    assert torch.equal(model.generate(["mountain"], seed=50), before)


def test_compiled_with_inductor() -> None:
    small = tiny_model(sides=(1, 2, 4), depth=1)
    what = Compression("scalekv", [("drafter",)], {2: {"drafter": 3}}, 1)
    sparvar.compile(small, tiny_plan(small, **{**dense_changes(1), **kv_fields(what)}))
    try:
        image = small.generate(["mountain"], seed=50)
    finally:
        sparvar.detach(small)
    assert (image - slow(small, "mountain", 50, what)[0]).abs().mean() < 1e-3


def test_a_module_without_two_caches_is_refused() -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "model": {"sites": ["a"], "heads": 2, "head_dim": 8},
            "schedule": [[1, 1], [2, 2], [3, 3]],
            "sink_scales": 1,
            "layers": ["dense"],
            "kv": {"method": "local", "kinds": [["local"]], "keep": {2: {"local": 3}}},
        }
    ).require()
    with pytest.raises(SessionError, match="must keep its keys and its values in two tensors"):
        Compressor(plan).compact_caches(torch.nn.Linear(1, 1), 0, 2, (torch.zeros(2, 4, 16),), {})


def test_a_prefix_stays() -> None:
    """Sinks are the prefix and the sink scales, in every head, whatever the scores say."""
    plan = Plan.model_validate(
        {
            "name": "p",
            "model": {"sites": ["a"], "heads": 2, "head_dim": 8},
            "schedule": [[1, 1], [2, 2], [3, 3]],
            "prefix": 5,
            "sink_scales": 1,
            "layers": ["dense"],
            "kv": {"method": "scalekv", "kinds": [["drafter"]], "keep": {2: {"drafter": 8}}},
        }
    ).require()
    compressor = Compressor(plan)
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.keys, module.values = torch.randn(2, 10, 2, 8), torch.randn(2, 10, 2, 8)  # [B, T, H, D]
    before = module.keys
    compressor.choose_keys(0, 2, torch.randn(2, 2, 4, 8), before.transpose(1, 2), 1.0)
    compressor.compact_caches(module, 0, 2, (torch.zeros(2, 4, 16),), {})
    assert module.keys.shape == module.values.shape == (2, 8, 2, 8)
    places = compressor.places[0]
    assert places.shape == (2, 2, 8) and bool((places[..., :6] == torch.arange(6)).all())
    index = places.transpose(1, 2)[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(module.keys, before.gather(1, index))
