"""Recognise attention: candidates by code before a run, sites by graph structure during it."""

from sparvar.passes.capture.attention import AttentionCall, example, find_attention, is_attention, is_cat
from sparvar.passes.capture.candidates import Candidate, find_candidates

__all__ = ["AttentionCall", "Candidate", "example", "find_attention", "find_candidates", "is_attention", "is_cat"]
