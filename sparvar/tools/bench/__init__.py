"""The measurements behind `sparvar bench` and `sparvar demo`."""
