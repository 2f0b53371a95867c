"""From a model to compiled sites: where attention is, which graph runs there, and why."""
