"""Capture, analyse and rewrite: from a Dynamo graph to one that calls the ops."""

from sparvar.passes.analyse import fingerprint
from sparvar.passes.base import GraphContext, Outcome, Refusal, Rule, uuid
from sparvar.passes.capture import Candidate, find_attention, find_candidates
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
    "fingerprint",
    "graph_text",
    "run_passes",
    "uuid",
]
