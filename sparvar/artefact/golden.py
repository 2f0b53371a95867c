"""The golden run: inputs that were recorded with an artefact, and the image that they must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparvar.artefact.execution.inputs import Request
from sparvar.artefact.manifest.schema import Manifest
from sparvar.artefact.tensors import TensorFile
from sparvar.errors import ArtefactError, message


def golden_run(folder: Path, manifest: Manifest, numpy: bool) -> tuple[Request, Any, float]:
    """The request, its image (a NumPy array), and the PSNR in dB that a run must have.

    Args:
        folder: the artefact's.
        manifest: of the artefact.
        numpy: give inputs as NumPy arrays, as torch tensors otherwise.

    Raises:
        ArtefactError: the recording is not complete.
    """
    file = TensorFile(folder / manifest.golden.file)
    facts = manifest.golden.facts
    seed, least = facts.get("seed"), facts.get("psnr_db")
    if not isinstance(seed, int) or not isinstance(least, int | float) or "image" not in file.names:
        raise ArtefactError(message("golden", "have seed, psnr_db and an image", ", ".join(facts) or "none of them"))
    values: dict[str, Any] = {}
    for spec in manifest.inputs:
        name = f"inputs/{spec.name}"
        if name not in file.names:
            raise ArtefactError(message("golden", f"have a tensor {name}", ", ".join(file.names)))
        values[spec.name] = file.numpy(name) if numpy else file.torch(name)
    return Request(values, seed, manifest.images), file.numpy("image"), float(least)
