"""The ``aoti`` format: one AOTInductor package per program, and the CPU kernels that its ops call."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparvar.artefact.engines.aoti import facts
from sparvar.artefact.manifest.schema import FormatSpec
from sparvar.export.blocks import trace_blocks
from sparvar.export.capture import Recorded
from sparvar.export.formats.aoti import compile_all
from sparvar.export.formats.specs import program_specs, step_specs
from sparvar.export.programs import Generation
from sparvar.kernels import native_library, native_status
from sparvar.progress import Part, TaskProgress


def require() -> None:
    """All that this format needs comes with torch."""


def trace(recorded: Recorded, progress: TaskProgress) -> Generation:
    """The generation on the kernels' own ops."""
    return trace_blocks(recorded, progress=Part(progress, 0.05, 0.05))


def write(made: Generation, folder: Path, work: Path, jobs: int, progress: TaskProgress) -> FormatSpec:
    """Compile the programs into ``folder/aoti``; what ``work`` has from before is not compiled again."""
    packages = compile_all(made.programs, work, jobs, Part(progress, 0.15, 1.0))
    place = folder / "aoti"
    place.mkdir()
    for name, package in packages.items():
        shutil.copyfile(package, place / f"{name}.pt2")
    device = made.family.device
    native: tuple[str, ...] = ()
    if device.type == "cpu" and native_status().usable:
        (folder / "native").mkdir()
        (folder / "native" / "kernels.so").write_bytes(native_library())
        native = ("native/kernels.so",)
    return FormatSpec(
        device=device.type,
        requires=facts(device.type),
        programs=program_specs(made, lambda name: f"aoti/{name}.pt2"),
        steps=step_specs(made),
        native=native,
    )
