"""Capture, analyse and rewrite: from a Dynamo graph to one that calls the ops."""

from sparvar.passes.base import GraphContext, Outcome, Refusal, Rule, uuid
from sparvar.passes.capture import Candidate, find_attention, find_candidates, make_visible
from sparvar.passes.manager import PASSES, Report, graph_text, run_passes

__all__ = [
    "PASSES",
    "Candidate",
    "GraphContext",
    "Outcome",
    "Refusal",
    "Report",
    "Rule",
    "find_attention",
    "find_candidates",
    "graph_text",
    "make_visible",
    "run_passes",
    "uuid",
]
