"""Plans by rule: published models and methods, before any calibration."""
