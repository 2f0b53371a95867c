"""Measurements: image quality, time, memory, and the machine they were taken on."""
