"""Calibration: from a model, a few prompts and a budget to the cheapest plan that meets it on this machine."""

from sparvar.calibrate.api import Calibration, calibrate, finish_calibration, start_calibration
from sparvar.calibrate.budget import Budget, Effort
from sparvar.calibrate.candidates.candidate import ColumnCandidate, Setting, candidate_text, read_candidate
from sparvar.calibrate.fit.skip import SkipFit, SkipOptions, fit_skip
from sparvar.calibrate.measure.kv_statistics import KVStatistics, kv_statistics
from sparvar.calibrate.options import CalibrationOptions
from sparvar.calibrate.transfer_loss import compare_plans
from sparvar.models.checkpoint import apply_checkpoint
from sparvar.models.resolve import load_subject
from sparvar.models.subject import Subject

__all__ = [
    "Budget",
    "Calibration",
    "CalibrationOptions",
    "ColumnCandidate",
    "Effort",
    "KVStatistics",
    "Setting",
    "SkipFit",
    "SkipOptions",
    "Subject",
    "apply_checkpoint",
    "calibrate",
    "candidate_text",
    "compare_plans",
    "finish_calibration",
    "fit_skip",
    "kv_statistics",
    "load_subject",
    "read_candidate",
    "start_calibration",
]
