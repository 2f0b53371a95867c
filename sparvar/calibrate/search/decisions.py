"""Which decision serves which site, as a graph that is checked and recorded for the report.

It is about columns: which tokens and rows a site computes changes nothing in it. Nodes are tuples.
``("decide", layer, scale)`` and ``("sparse", layer, scale)`` are the sites that are not dense; ``("windows", scale)``
are the column lists that all csla layers of a scale share; ``("correction", layer, scale)`` is the difference of dense
and sparse output, made at the decision scale and added at later ones. Edges point from what is made to what uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networkx as nx

from sparvar.errors import message
from sparvar.scale_plans import Plan

Node = tuple[Any, ...]


def decisions_graph(plan: Plan) -> nx.DiGraph:
    """What a generation under ``plan`` makes and uses, one node per thing, in order of layers and scales."""
    graph = nx.DiGraph()
    for layer, policy in enumerate(plan.layers):
        for scale in range(1, plan.scales + 1):
            kind = plan.attention_kind(scale, layer)
            if kind == "dense":
                continue
            site = kind, layer, scale
            graph.add_node(site)
            if kind == "decide" or (policy == "cs4a" and plan.decision_scale is None):
                continue
            if policy == "csla":
                graph.add_edge(("windows", scale), site)
                continue
            decision = "decide", layer, plan.decision_scale
            graph.add_edge(decision, site)
            if plan.output_correction:
                correction = "correction", layer, plan.decision_scale
                graph.add_edge(decision, correction)
                graph.add_edge(correction, site)
    return graph


def check_decisions(graph: nx.DiGraph, plan: Plan) -> list[str]:
    """What is wrong with ``graph`` as the decisions of ``plan``, one line each; empty when nothing is.

    Every site of the plan that is not dense is there and no other; there is no cycle; a sparse cs4a site has exactly
    one deciding ancestor, of its own layer and an earlier scale, and with the output correction exactly one correction;
    a csla site uses the windows of its own scale and no decision; nothing is made that no site uses.
    """
    return [*_cycles(graph), *_places(graph, plan), *_sources(graph, plan), *_unused(graph)]


def decisions_record(plan: Plan) -> dict[str, Any]:
    """The plan's graph for ``calibration.json``: ``nodes`` and ``edges`` as lists, and the ``problems`` found in it."""
    graph = decisions_graph(plan)
    return {
        "nodes": [list(node) for node in graph.nodes],
        "edges": [[list(maker), list(user)] for maker, user in graph.edges],
        "problems": check_decisions(graph, plan),
    }


def _name(node: Node) -> str:
    if len(node) == 2:
        return f"{node[0]} of scale {node[1]}"
    kind = {"decide": "decision", "sparse": "sparse site"}.get(node[0], node[0])
    return f"{kind} of layer {node[1]} at scale {node[2]}"


def _names(nodes: list[Node]) -> str:
    return " and ".join(_name(node) for node in nodes) or "none"


def _cycles(graph: nx.DiGraph) -> Iterator[str]:
    if not nx.is_directed_acyclic_graph(graph):
        around = [maker for maker, _ in nx.find_cycle(graph)]
        yield message("decisions", "have no cycle", " -> ".join(_name(node) for node in [*around, around[0]]))


def _places(graph: nx.DiGraph, plan: Plan) -> Iterator[str]:
    wanted = {
        (plan.attention_kind(scale, layer), layer, scale)
        for layer in range(len(plan.layers))
        for scale in range(1, plan.scales + 1)
        if plan.attention_kind(scale, layer) != "dense"
    }
    have = {node for node in graph if node[0] in ("decide", "sparse")}
    for node in sorted(wanted - have):
        yield message(_name(node), "be in the graph, as the plan runs it", "no such node")
    for node in sorted(have - wanted):
        yield message(_name(node), "be left out", "a node, while the plan runs no such thing there")


def _sources(graph: nx.DiGraph, plan: Plan) -> Iterator[str]:
    for site in sorted(node for node in graph if node[0] == "sparse"):
        _, layer, scale = site
        before: dict[str, list[Node]] = {"decide": [], "correction": [], "windows": []}
        for node in sorted(nx.ancestors(graph, site), key=str):
            before.setdefault(node[0], []).append(node)
        name = _name(site)
        if layer < len(plan.layers) and plan.layers[layer] == "csla":
            if before["windows"] != [("windows", scale)]:
                yield message(name, f"use the windows of scale {scale} alone", _names(before["windows"]))
            if before["decide"]:
                yield message(name, "depend on no decision, being csla", _names(before["decide"]))
            continue
        decisions = before["decide"]
        if len(decisions) != 1 or decisions[0][1] != layer or decisions[0][2] >= scale:
            must = f"depend on one decision, of layer {layer} at an earlier scale"
            yield message(name, must, _names(decisions))
        wanted = [("correction", layer, plan.decision_scale)] if plan.output_correction else []
        if before["correction"] != wanted:
            must = f"use the {_name(wanted[0])} alone" if wanted else "use no correction, being without in the plan"
            yield message(name, must, _names(before["correction"]))
        if before["windows"]:
            yield message(name, "use no shared windows, being cs4a", _names(before["windows"]))


def _unused(graph: nx.DiGraph) -> Iterator[str]:
    for node in sorted((node for node in graph if node[0] != "sparse"), key=str):
        if not any(used[0] == "sparse" for used in nx.descendants(graph, node)):
            yield message(_name(node), "serve a sparse site", "none")
