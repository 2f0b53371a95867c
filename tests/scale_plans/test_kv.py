"""KV compression in plans: contradictions, text, differences, transfer and budgets."""

from __future__ import annotations

from typing import Any

import pytest

from sparvar.errors import PlanError
from sparvar.scale_plans import Plan, diff, hack, held_share, local, peak_share, scalekv, transfer
from sparvar.scale_plans.presets.kv_compression import drafters
from tests.scale_plans.strategies import INFINITY, infinity_plan

SOUND: dict[str, Any] = {
    "method": "scalekv",
    "kinds": [["drafter"], ["refiner"]],
    "keep": {11: {"drafter": 1500, "refiner": 800}, 12: {"drafter": 1500, "refiner": 700}},
}


def dense(**kv: Any) -> Plan:
    """Two dense layers with compressed caches."""
    plan = infinity_plan(2).replace(layers=["dense"] * 2, cs4a={}, csla={}, decision_scale=None)
    return plan.replace(kv={**SOUND, **kv})


def problems(plan: Plan | None = None, **changes: Any) -> list[str]:
    with pytest.raises(PlanError) as found:
        (plan or dense()).replace(**changes)
    return found.value.problems


def kv(**changes: Any) -> dict[str, Any]:
    return {"kv": {**SOUND, **changes}}


def test_counts() -> None:
    plan = dense()
    assert [plan.held(scale, 0) for scale in (10, 11, 12, 13)] == [2521, 1500, 1500, 0]
    assert [plan.present(scale, 1) for scale in (11, 12, 13)] == [4121, 800 + 2304, 700 + 4096]
    assert [plan.kind(scale, 0) for scale in (10, 11, 12, 13)] == ["dense", "score", "score", "dense"]
    assert plan.room(2, 0) == plan.room(11, 0) == 4121
    assert (plan.room(12, 1), plan.room(13, 1)) == (3104, 4796)
    assert not plan.all_dense
    assert held_share(plan) == 2 * 2521 / (2 * 10521)  # after scale 10, before anything was dropped
    assert peak_share(plan) == (4121 + 2521) / (2 * 10521)
    whole = plan.replace(kv=None)
    assert whole.room(2, 0) == whole.held(13, 0) == 10521
    assert "kv" not in whole.dumps()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (kv(kinds=[["drafter"]]), "kv.kinds: must have 2 entries, one per layer, got 1"),
        (kv(kinds=[["drafter"], ["refiner"], ["refiner"]]), "kv.kinds: must have 2 entries, one per layer, got 3"),
        (
            kv(kinds=[["drafter"], ["local"]]),
            "kv.kinds, layer 1: must be of drafter, refiner, whole with method scalekv, got 'local'",
        ),
        (kv(kinds=[["drafter"], []]), "kv.kinds, layer 1: must name a kind, got none"),
        (kv(kinds=[["drafter"], ["refiner", "drafter"]]), "kv.kinds, layer 1: must be one kind for the whole layer"),
        (
            {"kv": {"method": "hack", "kinds": [["structural"], ["contextual"] * 3], "keep": {}}},
            "kv.kinds, layer 1: must name one kind, or one for each key head of a model with 16 heads, got 3 kinds",
        ),
        (kv(kinds=[["whole"], ["whole"]], keep={}), "kv.kinds: must compress at least one layer, got none"),
        (
            kv(keep={11: {"drafter": 900}}),
            "kv.keep.11: must say how many keys each of drafter, refiner keeps: they share one schedule,"
            " got nothing for refiner",
        ),
        (kv(keep={11: {}}), "kv.keep.11: must say how many keys drafter, refiner keep, got nothing"),
        (
            kv(keep={11: {"drafter": 900, "refiner": 900, "local": 3}}),
            "kv.keep.11: must count keys of drafter, refiner with method scalekv, got 'local'",
        ),
        (
            kv(keep={13: {"drafter": 900, "refiner": 900}}),
            "kv.keep.13: must name a scale between 1 and 12, before the last that is drawn, got scale 13",
        ),
        (
            {**kv(), "skip": {"last": 1}},
            "kv.keep.12: must name a scale between 1 and 11, before the last that is drawn, got scale 12",
        ),
        (
            kv(keep={11: {"drafter": 900, "refiner": 0}}),
            "kv.keep.11.refiner: must be at least 121, the sinks, which always stay, got 0",
        ),
        (
            kv(keep={11: {"drafter": 900, "refiner": 4122}}),
            "kv.keep.11.refiner: must be at most 4121, the keys that are there by then, got 4122",
        ),
        (
            kv(keep={11: {"drafter": 900, "refiner": 800}, 12: {"drafter": 900, "refiner": 3105}}),
            "kv.keep.12.refiner: must be at most 3104, the keys that are there by then, got 3105",
        ),
        (kv(queries=15), "kv.queries: must be a square number above 0: as many patches down as across, got 15"),
        (kv(pool=2), "kv.pool: must be odd and between 1 and 99, got 2"),
        (
            {
                **kv(),
                "pruning": {
                    "score": "pivot",
                    "fill": "delta",
                    "source": 9,
                    "spans": [{"first": 1, "last": 1, "keep": {13: 0.5}}],
                },
            },
            "kv.kinds, layer 1: must leave out layers of pruned spans, whose holes in the cache are counted in whole"
            " grids, got one of span 0",
        ),
        (kv(keeps={}), "kv.keeps: unknown field; did you mean 'keep'?"),
        (kv(method="snapkv"), "kv.method: must be 'scalekv', 'hack' or 'local', got \"snapkv\""),
    ],
)
def test_contradictions(changes: dict[str, Any], says: str) -> None:
    assert any(problem.startswith(says) for problem in problems(**changes)), problems(**changes)


def test_sparse_layers() -> None:
    plan = infinity_plan(3)  # dense, dense, cs4a; decision at scale 11
    three = {**SOUND, "kinds": [["drafter"], ["refiner"], ["refiner"]]}
    assert plan.replace(kv=three).kind(12, 2) == "sparse"
    early = {**three, "keep": {10: {"drafter": 900, "refiner": 900}}}
    says = "kv.keep.10: must be at or after the decision scale, 11, whose column sums need every key, got scale 10"
    assert any(problem.startswith(says) for problem in problems(plan, kv=early))
    says = "layers, layer 2: must be dense where there are no sinks"
    assert any(problem.startswith(says) for problem in problems(plan, kv=three, sink_scales=0))
    says = "kv.store: must be same unless the model computes in float32 or bfloat16"
    half = {**plan.model.model_dump(), "dtype": "float16"}
    assert any(problem.startswith(says) for problem in problems(plan, kv={**three, "store": "bfloat16"}, model=half))


def test_text() -> None:
    plan = dense()
    assert Plan.loads(plan.dumps()) == plan
    assert plan.digest != plan.replace(kv=None).digest
    assert "\n".join(str(plan).split("\n")[-7:-1]) == (
        "KV cache: scalekv, at most 24.0 % of whole caches between scales, 31.6 % while a layer runs\n"
        "  drafter: layer 0\n"
        "  refiner: layer 1\n"
        "  after scale 11 (40x40) of 4121 keys: drafter 1500, refiner 800\n"
        "  after scale 12 (48x48) of 6425 keys: drafter 1500, refiner 700\n"
        "attention kept: 100.0 % of dense multiply-adds (estimate)"
    )


def test_differences() -> None:
    plan = dense()
    changed = plan.replace(**kv(keep={11: {"drafter": 1500, "refiner": 900}}, queries=64))
    assert str(diff(plan, changed)) == (
        'kv.keep.11.refiner: 800 -> 900\nkv.keep.12: {"drafter": 1500, "refiner": 700} -> absent\nkv.queries: 16 -> 64'
    )
    assert str(diff(plan.replace(kv=None), plan)).startswith('kv: added {"method": "scalekv"')
    assert str(diff(plan, plan.replace(kv=None))).startswith('kv: removed {"method": "scalekv"')


def test_transfer_keeps_shares() -> None:
    plan = dense()
    small = transfer(plan, [(side // 2 or 1, side // 2 or 1) for side, _ in INFINITY])
    assert small.kv is not None and small.kv.keep.keys() == {11, 12}
    assert small.kv.keep[11]["drafter"] == round(1500 * small.keys(11) / 4121)
    assert transfer(plan, INFINITY) == plan
    assert transfer(plan, [(1, 1)]).kv is None


def test_drafters_have_the_lowest_selectivity() -> None:
    measured = [{9: 0.2, 10: 0.9}, {9: 0.1, 10: 0.1}, {9: 0.9, 10: 0.95}, {9: 0.15, 10: 0.2}]
    assert drafters(measured, 2) == [1, 3]
    assert drafters([{9: 0.5}, {9: 0.5}], 1) == [0]
    with pytest.raises(PlanError, match="selectivity: must have the same scales"):
        drafters([{9: 1.0}, {10: 1.0}], 1)
    with pytest.raises(PlanError, match="drafters: must be between 0 and 1"):
        drafters([{9: 1.0}], 2)


def test_budgets_add_up() -> None:
    base = dense().replace(kv=None)
    made = base.replace(kv=scalekv(base, [{12: 0.9}, {12: 0.1}], 1200, drafting=1, decay=0.5))
    assert made.kv is not None
    assert made.kv.kinds == (("refiner",), ("drafter",))
    assert [counts["refiner"] for counts in made.kv.keep.values()] == [1200, 1000, 800, 600]
    for scale in made.kv.keep:
        assert sum(made.held(scale, layer) for layer in range(2)) == 2 * 1200
    heads = [[0.1] * 4 + [0.9] * 12, [0.2] * 4 + [0.8] * 12]
    kept = base.replace(kv=hack(base, heads, 1200, contextual=0.25, less=0.5))
    assert kept.kv is not None and kept.kv.keep[12] == {"contextual": 600, "structural": 1400}
    assert kept.held(12, 0) == kept.held(12, 1) == 1200
    fp32 = base.replace(model={**base.model.model_dump(), "dtype": "float32"})
    stored = fp32.replace(kv=local(fp32, 2630, store="bfloat16"))  # twice the keys of an eighth
    assert stored.kv is not None and list(stored.kv.keep) == [9, 10, 11, 12], "1497 keys in float32 are more bytes"
    assert stored.kv.keep[10] == {"local": 2521} and held_share(stored) == 2630 * 2 / (10521 * 4)
    assert (stored.drops_keys(9, 0), stored.compacts(9, 0), stored.room(2, 0)) == (False, True, 1497)
    assert base.replace(kv=local(base, 700)).held(12, 1) == 700
    for budget, says in ((100, "be at least 121, the sinks"), (7000, "be below 6425")):
        with pytest.raises(PlanError, match=says):
            local(base, budget)
