"""The candidates that calibration compares."""
