"""Check an artefact: files against checksums, the golden image against the one that its programs draw here."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparvar.artefact.inputs import Request
from sparvar.artefact.load import load
from sparvar.artefact.tensors import TensorFile
from sparvar.errors import ArtefactError, message


@dataclass(frozen=True)
class ProgramTime:
    """Runs of one program in a generation and the seconds of all of them."""

    runs: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        format: that was run.
        files, bytes: that were compared with their checksums.
        psnr_db: of the golden image drawn here against the recorded one, infinite where they are equal.
        least_db: that the artefact asks for.
        load_seconds, seconds: of loading, checks included, and of a generation after a first one.
        programs: by name, in order of their first run.
    """

    format: str
    files: int
    bytes: int
    psnr_db: float
    least_db: float
    load_seconds: float
    seconds: float
    programs: Mapping[str, ProgramTime] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the golden image is the recorded one, up to what the artefact allows."""
        return self.psnr_db >= self.least_db


def verify(
    path: str | os.PathLike[str], *, format: str | None = None, device: str | None = None, trust: bool = False
) -> Report:
    """Load an artefact, which checks every file, run its golden inputs and compare the image.

    Raises:
        ArtefactError: it cannot be loaded, see `sparvar.load`, or its golden run is not complete.
    """
    artefact = load(path, format=format, device=device, trust=trust)
    manifest = artefact.manifest
    golden = TensorFile(Path(artefact.folder) / manifest.golden.file)
    facts = manifest.golden.facts
    seed, least = facts.get("seed"), facts.get("psnr_db")
    if not isinstance(seed, int) or not isinstance(least, int | float) or "image" not in golden.names:
        raise ArtefactError(message("golden", "have seed, psnr_db and an image", ", ".join(facts) or "none of them"))
    values: dict[str, Any] = {}
    for spec in manifest.inputs:
        name = f"inputs/{spec.name}"
        if name not in golden.names:
            raise ArtefactError(message("golden", f"have a tensor {name}", ", ".join(golden.names)))
        values[spec.name] = golden.numpy(name) if artefact.name == "onnx" else golden.torch(name)
    request = Request(values, seed, manifest.images)
    times: dict[str, ProgramTime] = {}

    def note(name: str, seconds: float) -> None:
        before = times.get(name, ProgramTime(0, 0.0))
        times[name] = ProgramTime(before.runs + 1, before.seconds + seconds)

    with artefact.session() as session:
        session.run(request)
        started = time.perf_counter()
        image = artefact.engine.images(session.run(request, note), manifest.images)
        seconds = time.perf_counter() - started
    return Report(
        format=artefact.name,
        files=len(manifest.files),
        bytes=sum(each.bytes for each in manifest.files.values()),
        psnr_db=psnr(image, golden.numpy("image")),
        least_db=float(least),
        load_seconds=artefact.load_seconds,
        seconds=seconds,
        programs=times,
    )


def psnr(image: Any, wanted: Any) -> float:
    """PSNR in dB of two arrays with values in [0, 1]; infinite where they are equal."""
    import numpy

    difference = numpy.asarray(image, dtype=numpy.float64) - numpy.asarray(wanted, dtype=numpy.float64)
    error = float((difference**2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)
