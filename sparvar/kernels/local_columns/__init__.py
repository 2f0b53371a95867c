"""Columns of cross-scale local attention, from geometry alone."""
