"""Artefacts: what `sparvar export` writes, and what runs it on a machine without the model."""

from sparvar.artefact.consistency import check_tensors
from sparvar.artefact.files import check_files, pack, unpack
from sparvar.artefact.manifest import Manifest, read_manifest
from sparvar.artefact.noise import NumpyNoiseStream, TorchNoiseStream
from sparvar.artefact.tensors import TensorFile
from sparvar.artefact.trust import known, remember, require_trust

__all__ = [
    "Manifest",
    "NumpyNoiseStream",
    "TensorFile",
    "TorchNoiseStream",
    "check_files",
    "check_tensors",
    "known",
    "pack",
    "read_manifest",
    "remember",
    "require_trust",
    "unpack",
]
