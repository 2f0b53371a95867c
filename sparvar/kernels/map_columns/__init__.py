"""Columns of the decision scale carried to a later scale."""
