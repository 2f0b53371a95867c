"""Measurements on the model: images, seconds, and statistics of attention."""
