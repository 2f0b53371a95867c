"""The formats of programs: what each is called on disk, what it needs to run, and whether loading it runs code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FormatRules:
    """What holds for every artefact of a format.

    Attributes:
        packages: that must be installed.
        ending: of the names of its programs; a manifest with another one is refused.
        native: loading a program runs machine code of the file, whatever the file is called: it needs trust.
        libraries: the format may name shared libraries of its own (`FormatSpec.native`).
    """

    packages: tuple[str, ...]
    ending: str
    native: bool
    libraries: bool = False


FORMATS = {
    "aoti": FormatRules(("torch",), ".pt2", native=True, libraries=True),
    # A graph of onnxruntime's own operators: those of other domains need a library that the caller registers, which
    # sparvar never does.
    "onnx": FormatRules(("numpy", "onnxruntime"), ".onnx", native=False),
    "tensorrt": FormatRules(("torch", "tensorrt"), ".engine", native=True),
}
"""By name, in the order in which formats are tried."""
