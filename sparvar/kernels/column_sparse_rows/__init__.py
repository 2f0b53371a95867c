"""Column-sparse attention of gathered queries."""
