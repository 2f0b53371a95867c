"""Recognise attention: candidates by code before a run, sites by graph structure during it."""

from sparvar.passes.capture.attention import AttentionCall, find_attention, is_cat
from sparvar.passes.capture.candidates import Candidate, find_candidates, make_visible
from sparvar.passes.capture.forms import BHLC, BLHC, example, read_form

__all__ = [
    "BHLC",
    "BLHC",
    "AttentionCall",
    "Candidate",
    "example",
    "find_attention",
    "find_candidates",
    "is_cat",
    "make_visible",
    "read_form",
]
