"""A model and a plan as an artefact that runs without the model's code."""
