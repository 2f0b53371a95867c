"""Artefacts: what runs where the model is not. Needs torch, or NumPy and onnxruntime, and nothing else."""

from sparvar.artefact.inputs import Request
from sparvar.artefact.load import Artefact, Session, load, opened
from sparvar.artefact.manifest import FormatSpec, Manifest, ProgramSpec, Step
from sparvar.artefact.verify import ProgramTime, Report, verify

__all__ = [
    "Artefact",
    "FormatSpec",
    "Manifest",
    "ProgramSpec",
    "ProgramTime",
    "Report",
    "Request",
    "Session",
    "Step",
    "load",
    "opened",
    "verify",
]
