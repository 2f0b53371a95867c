"""The `sparvar` command and the measurements behind it."""
