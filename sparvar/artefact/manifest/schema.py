"""The manifest of an artefact: what it holds, what it needs, and how its programs make an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from sparvar.artefact.formats import FORMATS
from sparvar.artefact.manifest.paths import native_name

FORMAT = "sparvar-artefact"
SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CONSTANTS = "constants.safetensors"
LAYER = "{layer}"
LARGEST = 64 << 20
"""Bytes of a manifest at most."""


@dataclass(frozen=True)
class TensorSpec:
    """Dtype (torch's name) and static shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class ModelFacts:
    """The model that was exported; ``licence`` is that of its weights."""

    name: str
    family: str
    fingerprint: str
    dtype: str
    licence: str


@dataclass(frozen=True)
class PlanFacts:
    """The plan that the programs were built for."""

    file: str
    name: str
    digest: str


@dataclass(frozen=True)
class InputSpec:
    """What a caller gives: ``class`` (indices, with the classes' names), ``number`` (a scalar) or ``tensor``.

    Programs get it as the value ``inputs/NAME``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    default: int | float | None = field(default=None, metadata={"optional": True})
    classes: tuple[str, ...] = field(default=(), metadata={"optional": True})

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


@dataclass(frozen=True)
class NoiseSpec:
    """Random numbers that a run draws, in the order of the manifest; ``name`` begins with ``noise/``.

    Where ``per_image`` is set the first axis counts images, and image i draws from a generator seeded ``seed + i``;
    otherwise the first image's generator draws the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    distribution: str
    per_image: bool

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


@dataclass(frozen=True)
class BufferSpec:
    """Memory that is made once and that programs write into; ``name`` begins with ``buffers/``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)


@dataclass(frozen=True)
class ProgramSpec:
    """One compiled function. ``scale`` is 1-based, None before the first and after the last; ``workspace`` in bytes."""

    file: str
    scale: int | None
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flops: int
    dense_flops: int
    workspace: int


@dataclass(frozen=True)
class Step:
    """One call of a program, or one per layer: then ``{layer}`` in a name stands for the layer."""

    program: str
    inputs: tuple[str, ...] = field(metadata={"key": "in"})
    outputs: tuple[str, ...] = field(metadata={"key": "out"})
    layers: tuple[int, ...] | None = None

    def runs(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Yield names of values in and out for every call, in order."""
        if self.layers is None:
            yield self.inputs, self.outputs
            return
        for layer in self.layers:
            text = str(layer)
            yield (
                tuple(name.replace(LAYER, text) for name in self.inputs),
                tuple(name.replace(LAYER, text) for name in self.outputs),
            )


@dataclass(frozen=True)
class FormatSpec:
    """The programs in one format, what they need to run, and the steps of a generation.

    ``requires`` maps what must agree (``torch``, ``platform``, ``cpu``) to one word or several. ``native`` are files
    with native code that programs load beside their own.
    """

    device: str
    requires: Mapping[str, str | tuple[str, ...]]
    programs: Mapping[str, ProgramSpec]
    steps: tuple[Step, ...]
    native: tuple[str, ...] = field(default=(), metadata={"optional": True})

    def files(self) -> tuple[str, ...]:
        """Paths of the programs and of the native code, each once."""
        return tuple(dict.fromkeys([*(program.file for program in self.programs.values()), *self.native]))

    def native_files(self, format: str) -> tuple[str, ...]:
        """Those of `files` that hold native code where they are loaded as the format of this name.

        How a file is loaded decides, not what it is called: every program of a format that loads machine code is
        native. A name that says so counts beside that, and so does a format that is not known.
        """
        native = format not in FORMATS or FORMATS[format].native
        return tuple(path for path in self.files() if native or path in self.native or native_name(path))


@dataclass(frozen=True)
class FileSpec:
    """Checksum (64 hexadecimal digits) and size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Golden:
    """Recorded inputs and outputs: their file, and anything that JSON can hold about how they were made."""

    file: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What an artefact holds. Scales are 1-based, layers 0-based.

    ``schedule`` has (h, w) of every scale, ``prefix`` text tokens before scale 1, ``images`` the images that a run
    makes, each of shape ``image`` (channels, height, width). ``files`` has every file but the manifest. ``memory`` has
    bytes by what they are for.
    """

    created: str
    tool: str
    model: ModelFacts
    plan: PlanFacts
    schedule: tuple[tuple[int, int], ...]
    prefix: int
    layers: int
    images: int
    image: tuple[int, int, int]
    inputs: tuple[InputSpec, ...]
    noise: tuple[NoiseSpec, ...]
    buffers: tuple[BufferSpec, ...]
    formats: Mapping[str, FormatSpec]
    files: Mapping[str, FileSpec]
    golden: Golden
    memory: Mapping[str, int]

    def dumps(self) -> str:
        """The manifest as JSON, with a digest of itself; `parse_manifest` checks it and gives an equal manifest."""
        content = {"format": FORMAT, "schema": SCHEMA} | _plain(self)
        content = {"format": FORMAT, "schema": SCHEMA, "digest": content_digest(content)} | content
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def content_digest(content: Mapping[str, Any]) -> str:
    """``sha256:...`` of a JSON object without its key ``digest``, whatever its spaces and the order of its keys."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _plain(value: Any) -> Any:
    """JSON of dataclasses, mappings and tuples; optional fields that hold their default are left out."""
    if isinstance(value, Golden):
        return {"file": value.file, **value.facts}
    if is_dataclass(value):
        return {
            part.metadata.get("key", part.name): _plain(getattr(value, part.name))
            for part in fields(value)
            if not (part.metadata.get("optional") and getattr(value, part.name) == part.default)
        }
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value
