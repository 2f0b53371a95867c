"""Check an artefact: files against checksums, the golden image against the one that its programs draw here."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparvar.artefact.execution.executor import Timer
from sparvar.artefact.memory import resident, resident_apart, workspace
from sparvar.artefact.session import load
from sparvar.errors import message

SLACK = 1 << 20
"""Bytes by which the measured workspace may exceed the stated: small tensors of a library's own choosing."""

RESIDENT_SLACK = {"aoti": 16 << 20, "onnx": 64 << 20}
"""The same by format, beside a tenth, where the resident set is measured: pages are counted, and heaps have holes."""


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
        model_psnr_db: of the recorded image against the model's own, where the export had to record what its programs
            draw, because sampled bits flip; None where it recorded the model's.
        load_seconds, seconds: of loading, checks included, and of a generation after a first one.
        workspace: bytes that a generation takes beside weights and buffers, measured here; 0 where the format's
            runtime does not tell. The manifest states ``stated_workspace``.
        resident: bytes by which the resident set of a process of its own grew in a run, with freed blocks given back to
            the system, where ``workspace`` is what torch's allocator counted; 0 where the system does not tell.
        programs: by name, in order of their first run.
    """

    format: str
    files: int
    bytes: int
    psnr_db: float
    least_db: float
    load_seconds: float
    seconds: float
    workspace: int
    stated_workspace: int
    resident: int = 0
    model_psnr_db: float | None = None
    programs: Mapping[str, ProgramTime] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is not as the artefact says: the golden image, up to the PSNR it allows; the memory of a run."""
        found = []
        if self.psnr_db < self.least_db:
            found.append(message("the golden image", f"have at least {self.least_db:g} dB", f"{self.psnr_db:.1f}"))
        wide = RESIDENT_SLACK.get(self.format, 0) + self.stated_workspace // 10
        used = ((self.workspace, SLACK if self.format == "aoti" else wide, ""), (self.resident, wide, " resident"))
        for size, slack, what in used:
            if size > self.stated_workspace + slack:
                must = f"need at most {self.stated_workspace / 2**20:.1f} MiB beside weights and buffers, as stated"
                found.append(message("a generation", must, f"{size / 2**20:.1f} MiB{what}"))
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether there are no `problems`."""
        return not self.problems


def verify(
    path: str | os.PathLike[str], *, format: str | None = None, device: str | None = None, trust: bool = False
) -> Report:
    """Load an artefact, which checks every file, run its golden inputs and compare the image.

    Raises:
        ArtefactError: it cannot be loaded, see `sparvar.load`, or its golden run is not complete.
    """
    from sparvar.evaluate.metrics import psnr  # needs numpy; this module imports with nothing but Python

    artefact = load(path, format=format, device=device, trust=trust)
    manifest = artefact.manifest
    request, wanted, least = artefact.golden()
    times: dict[str, ProgramTime] = {}

    def note(name: str, seconds: float) -> None:
        before = times.get(name, ProgramTime(0, 0.0))
        times[name] = ProgramTime(before.runs + 1, before.seconds + seconds)

    def draw(timer: Timer | None = None) -> Any:
        return artefact.engine.images(session.run(request, timer), manifest.images)

    with artefact.session() as session:
        draw()
        started = time.perf_counter()
        found = psnr(draw(), wanted)  # comparing waits for a GPU
        seconds = time.perf_counter() - started
        found = min(found, psnr(draw(note), wanted))
    against = manifest.golden.facts.get("model_psnr_db")
    measured = grown = 0
    stated = max(program.workspace for program in manifest.formats[artefact.name].programs.values())
    if artefact.name == "aoti":
        known = manifest.golden.facts.get("threads")
        threads = known if isinstance(known, int) and known > 0 else None
        measured = workspace(artefact, request, threads)[0]
        if artefact.engine.device.type == "cpu":
            grown = resident_apart(artefact, threads)
        stated = manifest.memory.get("workspace", 0)
    elif artefact.name == "onnx" and stated:
        measured = resident(artefact, request)[0]
    return Report(
        format=artefact.name,
        files=len(manifest.files),
        bytes=sum(each.bytes for each in manifest.files.values()),
        psnr_db=found,
        least_db=least,
        load_seconds=artefact.load_seconds,
        seconds=seconds,
        workspace=measured,
        stated_workspace=stated,
        resident=grown,
        model_psnr_db=float(against) if isinstance(against, int | float) else None,
        programs=times,
    )
