"""The graph of decisions: right for plans of every kind, and each way to break it is found."""

from __future__ import annotations

import json
from collections.abc import Callable

import networkx as nx
import pytest

from sparvar.calibrate.search.decisions import check_decisions, decisions_graph, decisions_record
from sparvar.scale_plans import Plan, shipped_plans
from tests.calibrate.reports import make_plan


@pytest.fixture
def plan() -> Plan:
    """Six layers: dense, dense, three cs4a, one csla; scale 11 decides for 12 and 13; with correction."""
    return make_plan(layers=6)


def test_the_edges_of_a_plan(plan: Plan) -> None:
    graph = decisions_graph(plan)
    assert plan.layers == ("dense", "cs4a", "cs4a", "cs4a", "csla", "csla")
    assert set(graph.successors(("decide", 1, 11))) == {("sparse", 1, 12), ("sparse", 1, 13), ("correction", 1, 11)}
    assert set(graph.successors(("correction", 1, 11))) == {("sparse", 1, 12), ("sparse", 1, 13)}
    assert set(graph.successors(("windows", 13))) == {("sparse", 4, 13), ("sparse", 5, 13)}
    sites = [node for node in graph if node[0] in ("decide", "sparse")]
    assert len(sites) == plan.planned_sites()
    assert all(plan.kind(scale, layer) == kind for kind, layer, scale in sites)
    assert check_decisions(graph, plan) == []


@pytest.mark.parametrize("kind", ["hybrid", "dense", "csla", "cs4a"])
@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("layers", [1, 6, 40])
def test_sound_plans_have_no_problem(kind: str, correction: bool, layers: int) -> None:
    plan = make_plan(layers=layers, kind=kind, correction=correction)
    graph = decisions_graph(plan)
    assert check_decisions(graph, plan) == []
    assert any(node[0] == "correction" for node in graph) == (correction and "cs4a" in plan.layers)


def test_shipped_plans_have_no_problem() -> None:
    plans = shipped_plans()
    assert plans
    for plan in plans.values():
        assert check_decisions(decisions_graph(plan), plan) == []


def test_tokens_and_rows_that_are_left_out_change_nothing() -> None:
    plan = make_plan(layers=6, kind="hybrid")
    spans = [{"first": 0, "last": 5, "keep": {plan.scales: 0.5}}]
    less = plan.replace(
        pruning={"score": "pivot", "fill": "delta", "source": plan.scales - 1, "spans": spans},
        guidance={"conditional_from": plan.scales},
    )
    assert less.kind(plan.scales, 0) == "pruned"
    assert check_decisions(decisions_graph(less), less) == []
    assert list(decisions_graph(less).edges) == list(decisions_graph(plan).edges)


def test_an_all_dense_plan_has_no_node() -> None:
    assert len(decisions_graph(make_plan(layers=6, kind="dense"))) == 0


def without(node: tuple[object, ...]) -> Callable[[nx.DiGraph], None]:
    return lambda graph: graph.remove_node(node)


def edge(maker: tuple[object, ...], user: tuple[object, ...]) -> Callable[[nx.DiGraph], None]:
    return lambda graph: graph.add_edge(maker, user)


def no_edge(maker: tuple[object, ...], user: tuple[object, ...]) -> Callable[[nx.DiGraph], None]:
    return lambda graph: graph.remove_edge(maker, user)


CASES = [
    (edge(("sparse", 1, 13), ("decide", 1, 11)), "decisions: must have no cycle, got"),
    (without(("decide", 1, 11)), "decision of layer 1 at scale 11: must be in the graph"),
    (without(("decide", 1, 11)), "layer 1 at scale 12: must depend on one decision, of layer 1 at an earlier"),
    (without(("sparse", 4, 13)), "sparse site of layer 4 at scale 13: must be in the graph"),
    (edge(("windows", 12), ("sparse", 0, 12)), "sparse site of layer 0 at scale 12: must be left out"),
    (edge(("decide", 2, 11), ("sparse", 1, 13)), "got decision of layer 1 at scale 11 and decision of layer 2"),
    (edge(("decide", 1, 11), ("sparse", 4, 13)), "layer 4 at scale 13: must depend on no decision, being csla"),
    (edge(("windows", 12), ("sparse", 4, 13)), "layer 4 at scale 13: must use the windows of scale 13 alone"),
    (no_edge(("windows", 13), ("sparse", 4, 13)), "must use the windows of scale 13 alone, got none"),
    (edge(("windows", 13), ("sparse", 1, 13)), "must use no shared windows, being cs4a"),
    (without(("correction", 1, 11)), "must use the correction of layer 1 at scale 11 alone, got none"),
    (edge(("correction", 2, 11), ("sparse", 1, 13)), "and correction of layer 2 at scale 11"),
    (edge(("windows", 13), ("windows", 9)), "windows of scale 9: must serve a sparse site, got none"),
]


@pytest.mark.parametrize(("harm", "says"), CASES)
def test_a_broken_graph_is_found(plan: Plan, harm: Callable[[nx.DiGraph], None], says: str) -> None:
    graph = decisions_graph(plan)
    harm(graph)
    problems = check_decisions(graph, plan)
    assert any(says in problem for problem in problems), problems


def test_a_decision_of_another_layer_or_a_later_scale_does_not_serve(plan: Plan) -> None:
    graph = nx.relabel_nodes(decisions_graph(plan), {("decide", 1, 11): ("decide", 1, 12)})
    problems = check_decisions(graph, plan)
    assert any("layer 1 at scale 12: must depend on one decision" in problem for problem in problems)
    assert not any("layer 1 at scale 13: must depend on one" in problem for problem in problems)


def test_a_decision_that_serves_nothing_is_found(plan: Plan) -> None:
    graph = decisions_graph(plan)
    graph.remove_nodes_from([("sparse", 1, 12), ("sparse", 1, 13), ("correction", 1, 11)])
    assert "decision of layer 1 at scale 11: must serve a sparse site, got none" in check_decisions(graph, plan)


def test_a_correction_where_the_plan_has_none_is_found() -> None:
    plan = make_plan(layers=6, correction=False)
    graph = decisions_graph(plan)
    graph.add_edge(("correction", 1, 11), ("sparse", 1, 13))
    (problem,) = check_decisions(graph, plan)
    assert "must use no correction" in problem


def test_a_plan_that_contradicts_itself_shows(plan: Plan) -> None:
    """Plans are checked elsewhere, but a graph of a broken one must not look sound."""
    late = plan.model_copy(update={"decision_scale": 12})
    assert any("an earlier scale" in problem for problem in check_decisions(decisions_graph(late), late))
    never = plan.model_copy(update={"decision_scale": None})
    assert any("got none" in problem for problem in check_decisions(decisions_graph(never), never))


def test_the_record_is_json_and_holds_the_graph(plan: Plan) -> None:
    record = json.loads(json.dumps(decisions_record(plan)))
    graph = decisions_graph(plan)
    assert {tuple(node) for node in record["nodes"]} == set(graph.nodes)
    assert {(tuple(maker), tuple(user)) for maker, user in record["edges"]} == set(graph.edges)
    assert record["problems"] == []
