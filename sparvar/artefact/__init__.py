"""Artefacts: what runs where the model is not. Needs torch, or NumPy and onnxruntime, and nothing else."""

from sparvar.artefact.execution.inputs import Request
from sparvar.artefact.execution.noise import NumpyNoiseStream, TorchNoiseStream
from sparvar.artefact.files import check_files, pack, unpack
from sparvar.artefact.manifest.consistency import check_tensors
from sparvar.artefact.manifest.reading import read_manifest
from sparvar.artefact.manifest.schema import FormatSpec, Manifest, ProgramSpec, Step
from sparvar.artefact.session import Artefact, Session, load, opened
from sparvar.artefact.tensors import TensorFile
from sparvar.artefact.trust import known, remember, require_trust
from sparvar.artefact.verify import ProgramTime, Report, verify

__all__ = [
    "Artefact",
    "FormatSpec",
    "Manifest",
    "NumpyNoiseStream",
    "ProgramSpec",
    "ProgramTime",
    "Report",
    "Request",
    "Session",
    "Step",
    "TensorFile",
    "TorchNoiseStream",
    "check_files",
    "check_tensors",
    "known",
    "load",
    "opened",
    "pack",
    "read_manifest",
    "remember",
    "require_trust",
    "unpack",
    "verify",
]
