"""Stands in for Infinity's table of schedules: one small square one."""

from tests.conventions import SQUARE

dynamic_resolution_h_w = {1.0: {"1M": {"scales": list(SQUARE)}}}
