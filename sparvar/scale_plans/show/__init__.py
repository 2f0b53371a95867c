"""Plans as text for people: a table, and the difference of two."""
