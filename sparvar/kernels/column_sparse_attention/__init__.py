"""Attention of every query tile over its kept columns."""
