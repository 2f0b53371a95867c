"""Models fitted to measurements: predicted quality and seconds, and what decides per image."""
