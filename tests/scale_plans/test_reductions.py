"""Plans that leave out tokens, rows and scales: files, contradictions, differences, tables, FLOPs, methods."""

from __future__ import annotations

from typing import Any

import pytest

from sparvar.errors import PlanError
from sparvar.scale_plans import (
    ModelInfo,
    Plan,
    Thresholds,
    default_plan,
    dense_plan,
    diff,
    scale_work,
    total_work,
    transfer,
)
from sparvar.scale_plans.presets.methods import conditional, fastvar, kept_tokens, sparsevar, toprovar
from tests.scale_plans.strategies import infinity_plan

SCHEDULE = tuple((side, side) for side in (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
PRUNING: dict[str, Any] = {
    "score": "pivot",
    "fill": "delta",
    "source": 11,
    "spans": [{"first": 0, "last": 5, "keep": {12: 0.5, 13: 0.03}}],
}


def dense(layers: int = 6) -> Plan:
    return dense_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(layers)], heads=4, head_dim=64))


def test_plans_without_them_keep_their_bytes() -> None:
    text = dense().dumps()
    assert not any(name in text for name in ("pruning", "guidance", "skip"))
    assert dense().replace(pruning=PRUNING).replace(pruning=None).digest == dense().digest


def test_they_survive_a_file_and_count_in_the_digest() -> None:
    plan = dense().replace(pruning=PRUNING, guidance={"conditional_from": 12, "fill": "delta"}, skip={"last": 1})
    again = Plan.loads(plan.dumps())
    assert again == plan and again.digest == plan.digest
    changed = plan.replace(guidance={"conditional_from": 11, "fill": "delta"})
    assert changed.digest != plan.digest
    assert str(diff(plan, changed)) == "guidance.conditional_from: 12 -> 11"
    assert str(diff(plan, plan.replace(skip=None))).startswith("skip: ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pruning": {**PRUNING, "source": 13}}, "pruning.source: must be a scale between 1 and 12, got 13"),
        ({"pruning": {**PRUNING, "spans": []}}, "pruning.spans: must have at least one span"),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 6, "keep": {13: 0.5}}]}},
            "span 0: must have first <= last among the layers 0 to 5, got 0 to 6",
        ),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 3, "keep": {13: 0.5}}] * 2}},
            "span 1: must begin after layer 3",
        ),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 3, "keep": {13: 1.5}}]}},
            "span 0.keep.13: must be above 0 and at most 1, got 1.5",
        ),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 3, "keep": {13: 0.0001}}]}},
            "span 0.keep.13: must keep at least one of the 4096 tokens",
        ),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 3, "keep": {14: 0.5}}]}},
            "span 0.keep.14: must name a scale between 1 and 13",
        ),
        (
            {"pruning": {**PRUNING, "spans": [{"first": 0, "last": 3, "keep": {11: 0.5}}]}},
            "span 0.keep.11: must come after the source scale, 11",
        ),
        ({"guidance": {"conditional_from": 1}}, "guidance.conditional_from: must be a scale between 2 and 13"),
        ({"skip": {"last": 13}}, "skip.last: must be between 1 and 12, got 13"),
        (
            {"skip": {"last": 2}, "guidance": {"conditional_from": 12}},
            "guidance.conditional_from: must be a scale that is drawn, at most 11",
        ),
        (
            {"skip": {"last": 2}, "pruning": PRUNING},
            "pruning.spans: must prune a scale that is drawn, at most 11",
        ),
        ({"pruning": {**PRUNING, "score": "pivots"}}, "pruning.score: must be"),
    ],
)
def test_contradictions(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        dense().replace(**changes)
    assert expected in str(caught.value)


def test_what_columns_need() -> None:
    sparse = default_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(6)], heads=4, head_dim=64))
    early = {**PRUNING, "source": 9, "spans": [{"first": 0, "last": 5, "keep": {11: 0.5}}]}
    with pytest.raises(PlanError, match="must come after the decision scale, 11"):
        sparse.replace(pruning=early)
    with pytest.raises(PlanError, match="sparse attention has no entropy to give"):
        sparse.replace(pruning={**PRUNING, "score": "entropy", "source": 12, "spans": [_span({13: 0.5})]})
    with pytest.raises(PlanError, match="must come before the last scale that is drawn, 11"):
        sparse.replace(skip={"last": 2})


def _span(keep: dict[int, float]) -> dict[str, Any]:
    return {"first": 0, "last": 5, "keep": keep}


def test_kinds_of_pruned_layers() -> None:
    sparse = default_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(6)], heads=4, head_dim=64))
    plan = sparse.replace(pruning={**PRUNING, "spans": [{"first": 2, "last": 3, "keep": {12: 0.5}}]})
    assert [plan.kind(12, layer) for layer in range(6)] == ["dense", "dense", "pruned", "pruned", "sparse", "sparse"]
    # the keys that scale 12 left out are missing at scale 13, which computes all its tokens
    assert [plan.kind(13, layer) for layer in range(6)] == ["dense", "dense", "pruned", "pruned", "sparse", "sparse"]
    assert plan.span(13, 2) is None and plan.lacks_keys(13, 2) and not plan.lacks_keys(13, 4)


def test_table() -> None:
    text = str(dense().replace(pruning=PRUNING, guidance={"conditional_from": 12}, skip=None))
    assert "tokens: by pivot, skipped ones from delta, source scale 11 (40x40)" in text
    assert "layers 0-5 keep 50 % at 12, 3 % at 13" in text
    assert "guidance: conditional rows alone from scale 12 (48x48) on" in text
    assert "skipped: the last 2 of 13 scales" in str(dense().replace(skip={"last": 2}))


def test_work() -> None:
    """One layer of width 256, linear layers of 12 C^2 weights: counted by hand at the last scale."""
    plan = dense(1).replace(pruning={**PRUNING, "spans": [{"first": 0, "last": 0, "keep": {13: 0.25}}]})
    plan = plan.replace(guidance={"conditional_from": 13})
    linear = 2 * 12 * 256**2
    last = scale_work(plan, linear)[-1]
    whole = 2 * (4 * 4096 * 10521 * 256 + linear * 4096)
    assert (last.dense, last.columns) == (whole, whole)
    assert (last.tokens, last.rows, last.drawn) == (whole / 4, whole / 8, whole / 8)
    assert scale_work(dense(1).replace(skip={"last": 1}), linear)[-1].drawn == 0
    everything, left = total_work(plan, linear)
    assert everything - left == whole - whole / 8


def test_published_methods() -> None:
    fast = fastvar(dense(32))
    assert fast.pruning is not None and [span.first for span in fast.pruning.spans] == list(range(3, 28))
    assert fast.pruning.spans[0].keep == {12: 0.5, 13: 0.25} and fast.pruning.source == 11
    skipping = fastvar(dense(32), skipping=True)
    assert skipping.pruning is not None and skipping.drawn == 11
    assert skipping.pruning.spans[0].keep == {10: 0.6, 11: 0.5} and skipping.pruning.source == 9
    wide = dense_plan(
        [(1, 1), (3, 2), (6, 4), (15, 10), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52)],
        ModelInfo(sites=["a", "b"], heads=4, head_dim=64),
    )
    off_square = fastvar(wide, skipping=True)  # by grid, not by width: 39x26 of 78x52 is a half
    assert off_square.pruning is not None and off_square.pruning.spans[0].keep == {6: 0.6, 7: 0.5}
    assert conditional(dense(), 3).conditional(11) and not conditional(dense(), 3).conditional(10)
    assert kept_tokens(dense(), "random", "input", 11, (0.5, 0.25)).span(13, 0) is not None


def test_sparsevar_of_models_with_residuals_and_without() -> None:
    anchored, previous = sparsevar(dense()).pruning, sparsevar(dense(), keep=0.5, residual=False).pruning
    assert anchored is not None and previous is not None
    assert (anchored.score, anchored.fill, anchored.source) == ("change", "anchor", 11)
    assert (previous.score, previous.fill, previous.source) == ("change", "previous", 11)
    assert [(span.first, span.last, dict(span.keep)) for span in previous.spans] == [(0, 5, {12: 0.5, 13: 0.5})]
    short = dense_plan(SCHEDULE[:2], ModelInfo(sites=["a"], heads=4, head_dim=64))
    for residual in (True, False):
        with pytest.raises(PlanError, match="schedule: must have at least three scales that are drawn, got 2"):
            sparsevar(short, residual=residual)
        with pytest.raises(PlanError, match=r"span 0.keep.12: must be above 0 and at most 1, got 1.5"):
            sparsevar(dense(), keep=1.5, residual=residual)


def test_plans_from_before_a_fill_was_added_keep_their_digests() -> None:
    written = "sha256:6ea3f04928d3af76fca9cef0c3286ea5fcea9f43c77110372e5b2074b3f76749"
    assert dense().replace(pruning=PRUNING).digest == written
    assert sparsevar(dense()).digest == "sha256:4b60199d7f4ab371fb5ea0be4b1f33c0843ebbc8a1bd2690075e34ce056e67ce"
    plan = dense().replace(pruning={**PRUNING, "fill": "previous"})
    assert plan.digest != written and Plan.loads(plan.dumps()) == plan
    assert "tokens: by pivot, skipped ones from the scale before, source scale 11 (40x40)" in str(plan)
    with pytest.raises(PlanError, match=r"keep.11: must come after the source scale, 11"):
        plan.replace(pruning={**PRUNING, "fill": "previous", "spans": [_span({11: 0.5})]})


def test_toprovar_takes_the_counts_of_the_thresholds() -> None:
    thresholds = Thresholds(
        tau=0.4, beta=1.0, alpha_min=0.5, alpha_max=0.9, start=12, representative=6, scores=(0.0, 1.0), min_keep=0.1
    )
    plan = toprovar(dense(2), thresholds)
    assert plan.pruning is not None and [span.first for span in plan.pruning.spans] == [1]
    assert plan.pruning.source == 11 and plan.pruning.score == "entropy"
    span = plan.span(13, 1)
    assert span is not None and plan.kept_tokens(13, span) == 4096 - round(4096 * 0.9)
    assert plan.kind(11, 1) == "decide", "the source scale measures entropy"
    with pytest.raises(PlanError, match="must have a start scale"):
        toprovar(dense(2))
    with pytest.raises(PlanError, match="must prune at least one"):
        toprovar(dense(2), thresholds.model_copy(update={"scores": (0.0, 0.0)}))


def test_rules_look_at_the_scales_that_are_drawn() -> None:
    """In a plan that skips scales, "the last scale" of every rule is the last that is drawn."""
    short = dense(2).replace(skip={"last": 2})
    thresholds = Thresholds(
        tau=0.4, beta=1.0, alpha_min=0.5, alpha_max=0.9, start=10, representative=6, scores=(0.0, 1.0), min_keep=0.1
    )
    plan = toprovar(short, thresholds)
    span = plan.span(11, 1)
    assert span is not None and set(span.keep) == {10, 11}
    assert plan.kept_tokens(11, span) == 1600 - round(1600 * 0.9), "scale / S_max is 1 at the last that is drawn"
    with pytest.raises(PlanError, match="a start scale that is not drawn"):
        toprovar(short, thresholds.model_copy(update={"start": 12}))
    assert conditional(short, 2).conditional(10) and not conditional(short, 2).conditional(9)
    change = sparsevar(short).pruning
    assert change is not None and (change.source, set(change.spans[0].keep)) == (9, {10, 11})
    pivot = fastvar(short).pruning
    assert pivot is not None and (pivot.source, pivot.spans[0].keep) == (9, {10: 0.5, 11: 0.25})
    sites = ["a", "b", "c", "d"]
    sparse = default_plan(SCHEDULE, ModelInfo(sites=sites, heads=4, head_dim=64), skipped=2)
    assert (sparse.drawn, sparse.decision_scale, set(sparse.csla)) == (11, 9, {10, 11})
    few = default_plan(SCHEDULE[:7], ModelInfo(sites=sites, heads=4, head_dim=64), skipped=2)
    assert (few.decision_scale, few.sink_scales) == (3, 2), "sinks end before the decision scale here, too"
    for skipped in (-1, 13):
        with pytest.raises(PlanError, match=r"skip\.last: must be between 1 and 12"):
            default_plan(SCHEDULE, ModelInfo(sites=sites, heads=4, head_dim=64), skipped=skipped)


def test_carried_to_another_schedule() -> None:
    sparse = default_plan(SCHEDULE, ModelInfo(sites=[f"blocks.{i}" for i in range(6)], heads=4, head_dim=64))
    plan = sparse.replace(
        decision_scale=9,
        cs4a={12: {"budget": 0.2}, 13: {"budget": 0.1}},
        pruning={**PRUNING, "source": 11, "spans": [{"first": 0, "last": 5, "keep": {12: 0.5, 13: 0.1}}]},
        guidance={"conditional_from": 11},
    )
    wide = [(1, 1), (2, 4), (4, 8), (8, 16), (12, 24), (16, 32), (20, 40), (24, 48), (32, 64)]
    there = transfer(plan, wide)
    assert there.pruning is not None and there.guidance is not None
    # 24x48 is three quarters of the last side, as 48x48 is; 20x40 is five eighths, as 40x40
    assert there.pruning.spans[0].keep == {8: 0.5, 9: 0.1} and there.pruning.source == 7
    assert there.guidance.conditional_from == 7
    assert transfer(plan, SCHEDULE).pruning == plan.pruning
    single = transfer(plan, [(2, 2)])
    assert single.pruning is None and single.guidance is None


def test_attention_of_what_is_left_out_is_not_counted() -> None:
    """`inspect` tells of tokens, rows and scales, too, and not of columns alone."""
    dense = infinity_plan().replace(layers=["dense"] * 10)
    last = dense.scales
    share = (
        dense.tokens(last)
        * dense.keys(last)
        / sum(dense.tokens(scale) * dense.keys(scale) for scale in range(1, last + 1))
    )
    span = {"first": 0, "last": 9, "keep": {last: 0.25}}
    pruned = dense.replace(pruning={"score": "pivot", "fill": "delta", "source": last - 1, "spans": [span]})
    assert pruned.cost() == pytest.approx(1 - 0.75 * share)
    assert dense.replace(guidance={"conditional_from": last}).cost() == pytest.approx(1 - 0.5 * share)
    assert dense.replace(skip={"last": 1}).cost() == pytest.approx(1 - share)
