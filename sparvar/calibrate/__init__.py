"""Calibration: from a model, a few prompts and a budget to the cheapest plan that meets it on this machine."""
