"""Recognise attention: candidates by code before a run, sites by graph structure during it."""

from sparvar.passes.capture.attention import AttentionCall, find_attention, is_cat
from sparvar.passes.capture.forms import BHLC, BLHC, example, read_form

__all__ = [
    "BHLC",
    "BLHC",
    "AttentionCall",
    "example",
    "find_attention",
    "is_cat",
    "read_form",
]
