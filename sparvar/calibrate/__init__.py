"""Calibration: from a model, a few prompts and a budget to the cheapest plan that meets it on this machine."""

from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.checkpoint import apply_checkpoint
from sparvar.calibrate.fit_skip import SkipFit, fit_skip
from sparvar.calibrate.kv_statistics import KVStatistics, kv_statistics
from sparvar.calibrate.run import Calibration, calibrate
from sparvar.calibrate.subject import Subject, load_subject
from sparvar.calibrate.transfer_loss import compare_plans

__all__ = [
    "Budget",
    "Calibration",
    "Effort",
    "KVStatistics",
    "SkipFit",
    "Subject",
    "apply_checkpoint",
    "calibrate",
    "compare_plans",
    "fit_skip",
    "kv_statistics",
    "load_subject",
]
