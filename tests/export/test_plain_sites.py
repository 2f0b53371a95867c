"""Attention from plain ops: the columns of the kernels' references, and outputs within float64's bound.

What is compared is what onnxruntime makes of it; the programs of TensorRT are traced from the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, PlanError
from sparvar.export.formats.onnx_convert import convert
from sparvar.export.plain_sites import column_table, plain_site, sampled_queries, tile_order
from sparvar.export.sites import column_sets, local_constants
from sparvar.export.trace import Program, export_graph
from sparvar.kernels import ColumnMap, Columns, QueryTiles, Schedule
from sparvar.kernels.column_sparse_attention import reference as attention
from sparvar.kernels.column_sums import reference as column_sums
from sparvar.kernels.map_columns import reference as map_columns
from sparvar.kernels.select_columns import reference as select_columns
from sparvar.runtime.site_ops import grow_delta
from sparvar.scale_plans import Plan
from tests.export.small import build, plan_for
from tests.kernels.support import assert_within, attention_bound, qkv

HEADS, DIM, SCALE = 2, 16, 0.25
WIDE = ((1, 1), (2, 3), (4, 5), (5, 8))
CASES: dict[str, dict[str, Any]] = {
    "relative, window": {},
    "identity": {"index_map": "identity", "cs4a": {4: {"budget": 0.3}}, "sink_scales": 1, "csla": {}},
    "footprint, correction, ragged": {
        "index_map": "footprint", "output_correction": True, "column_sum_stride": 2, "schedule": WIDE,
        "decision_scale": 3, "cs4a": {4: {"budget": 0.4, "window": 0}},
    },
    "relative, prefix, tile beyond the grid": {
        "prefix": 3, "tile": [4, 16], "decision_scale": 3, "cs4a": {4: {"budget": 0.5, "window": 5}}, "sink_scales": 0,
    },
}  # fmt: skip


def made_plan(case: str) -> Plan:
    plan = plan_for(build())
    fields = {**plan.model_dump(exclude={"digest"}), **CASES[case]}
    return Plan.model_validate(fields)


class Sites(nn.Module):
    """The decision scale, then cs4a and csla at the last: q, k, v of both to all that they give."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        assert plan.decision_scale is not None
        self.plan, self.last = plan, len(plan.schedule)
        self.decide = plain_site(plan, "decide", plan.decision_scale, SCALE)
        self.cs4a = plain_site(plan, "cs4a", self.last, SCALE)
        self.csla = plain_site(plan, "csla", self.last, SCALE) if plan.csla else None
        local = local_constants(plan)
        self.lists = [local[f"local{self.last}.{part}"] for part in ("columns", "counts")] if plan.csla else []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        out, *given = self.decide(*tensors[:3])
        place = 2 * column_sets(self.plan).index(self.plan.source_columns(self.last))
        delta = given[-1:] if self.plan.output_correction else []
        found = [out, *given[place : place + 2], self.cs4a(*tensors[3:], *given[place : place + 2], *delta)[0], *delta]
        if self.csla is not None:
            found.append(self.csla(*tensors[3:], *self.lists)[0])
        return tuple(found)


def in_onnxruntime(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    names = [f"in{number}" for number in range(len(tensors))]
    exported = export_graph(module, tensors)
    count = len(next(node for node in exported.graph.nodes if node.op == "output").args[0])
    program = Program("sites", 1, "test", exported, names, [f"out{number}" for number in range(count)])
    import onnx_ir

    model = onnx_ir.to_proto(convert(program))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, given)]


def lists_of(columns: list[list[int]]) -> tuple[Tensor, Tensor]:
    most = max(map(len, columns))
    rows = [row + [0] * (most - len(row)) for row in columns]
    return torch.tensor(rows, dtype=torch.int32), torch.tensor([len(row) for row in columns], dtype=torch.int32)


def mapped(plan: Plan, columns: Tensor) -> Columns:
    """The reference's lists of every head, padded: [B, H, G, K] and [B, H, G]."""
    last = len(plan.schedule)
    assert plan.decision_scale is not None
    schedule, window = Schedule.of(plan.schedule, plan.prefix), plan.cs4a[last].window
    mapping = ColumnMap(schedule, plan.decision_scale, last, plan.tile, plan.index_map, plan.sink_scales, window)
    rows = [map_columns.run(head, mapping) for head in columns.flatten(0, 1).tolist()]
    lists, counts = lists_of([row for head in rows for row in head])
    shape = (*columns.shape[:2], len(rows[0]))
    return Columns(lists.reshape(*shape, -1), counts.reshape(shape))


@pytest.mark.parametrize(("case", "batch"), zip(CASES, (1, 2, 3, 1), strict=True))
def test_sites_in_onnxruntime_are_those_of_the_references(case: str, batch: int) -> None:
    plan = made_plan(case)
    source, last = plan.decision_scale, len(plan.schedule)
    assert source is not None
    early = qkv(batch, HEADS, plan.tokens(source), plan.keys(source), DIM, size=3)
    late = qkv(batch, HEADS, plan.tokens(last), plan.keys(last), DIM, size=3)
    out, columns, counts, sparse, *rest = in_onnxruntime(Sites(plan), [*early, *late])

    q, k, v = (each.double() for each in early)
    scores = q @ k.transpose(2, 3) * SCALE
    grid = plan.schedule[source - 1]
    exact = scores.softmax(-1) @ v
    assert_within(out, exact, attention_bound(*early, SCALE, exact))
    sums = column_sums.run(q, k, scores.logsumexp(-1), SCALE, QueryTiles(grid, plan.tile), plan.column_sum_stride)
    wanted, kept = select_columns.run(sums, plan.source_columns(last))
    assert torch.equal(columns, wanted) and torch.equal(counts, kept)

    grid, last_grid = grid, plan.schedule[last - 1]
    tiles, last_tiles = QueryTiles(grid, plan.tile), QueryTiles(last_grid, plan.tile)
    exact = attention.run(*(each.double() for each in late), mapped(plan, wanted), SCALE, last_tiles)
    bound = attention_bound(*late, SCALE, exact)
    if plan.output_correction:
        delta, *rest = rest
        few = max(1, round(plan.cs4a[last].budget * plan.keys(source)))
        lists = select_columns.run(sums, few)
        left_out = scores.softmax(-1) @ v - attention.run(q, k, v, Columns(*lists), SCALE, tiles)
        dense_bound = attention_bound(*early, SCALE, scores.softmax(-1) @ v)
        assert_within(delta, left_out, 2 * dense_bound)
        exact = exact + grow_delta(left_out.float(), grid, last_grid).double()
        bound = bound + 3 * float(dense_bound.max())
    assert_within(sparse, exact, bound)
    if rest:
        local = local_constants(plan)
        lists = Columns(*(local[f"local{last}.{part}"] for part in ("columns", "counts")))
        exact = attention.run(*(each.double() for each in late), lists, SCALE, last_tiles)
        assert_within(rest[0], exact, attention_bound(*late, SCALE, exact))


@pytest.mark.parametrize(("grid", "tile"), [((4, 6), (2, 3)), ((5, 8), (2, 3)), ((3, 2), (8, 16)), ((1, 7), (2, 2))])
def test_every_query_is_in_its_tile_and_found_again(grid: tuple[int, int], tile: tuple[int, int]) -> None:
    order, place = tile_order(grid, tile)
    queries = torch.arange(grid[0] * grid[1])
    assert torch.equal(order.reshape(-1)[place], queries)
    for g, members in enumerate(order.tolist()):
        across = -(-grid[1] // tile[1])
        assert {(n // grid[1] // tile[0]) * across + n % grid[1] // tile[1] for n in members} == {g}
    _, weights = sampled_queries(grid, tile, 2)
    sizes = [len(set(members)) for members in order.tolist()]
    torch.testing.assert_close(weights.sum(1), torch.tensor(sizes, dtype=torch.float32))


def test_a_tiles_own_keys_are_not_mapped_again() -> None:
    plan = made_plan("relative, window")
    table = column_table(plan, 4)
    sinks = plan.keys(plan.sink_scales)
    assert int((table < sinks).sum()) == 0
    assert bool((table[:, :sinks] == plan.keys(4)).all())


def test_maps_that_send_two_keys_to_one_are_refused() -> None:
    plan = made_plan("relative, window")
    shrinking = Plan.model_validate(
        {**plan.model_dump(exclude={"digest"}), "schedule": [[1, 1], [4, 4], [2, 6], [6, 6]], "sink_scales": 0}
    )
    with pytest.raises(PlanError, match=r"scales that grow.*use index map identity"):
        column_table(shrinking, 3)


def test_shared_key_heads_are_refused() -> None:
    plan = made_plan("relative, window")
    function: Callable[..., Any] = plain_site(plan, "decide", 2, SCALE)
    q, _, _ = qkv(1, 4, plan.tokens(2), plan.keys(2), DIM)
    _, k, v = qkv(1, 2, plan.tokens(2), plan.keys(2), DIM)
    with pytest.raises(CaptureError, match="as many key heads as query heads"):
        function(q, k, v)
