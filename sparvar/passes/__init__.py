"""Capture, analyse and rewrite: from a Dynamo graph to one that calls the ops."""

from sparvar.passes.base import GraphContext, Outcome, Refusal, Rule, uuid
from sparvar.passes.capture import find_attention
from sparvar.passes.manager import PASSES, Report, graph_text, run_passes

__all__ = [
    "PASSES",
    "GraphContext",
    "Outcome",
    "Refusal",
    "Report",
    "Rule",
    "find_attention",
    "graph_text",
    "run_passes",
    "uuid",
]
