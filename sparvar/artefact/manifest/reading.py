"""From the JSON of a manifest to its dataclasses: every field is checked, one that is not known is an error."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path

from sparvar.artefact.manifest.consistency import check_manifest
from sparvar.artefact.manifest.dtypes import DTYPES
from sparvar.artefact.manifest.fields import Field, parse
from sparvar.artefact.manifest.schema import (
    FORMAT,
    LARGEST,
    MANIFEST,
    SCHEMA,
    BufferSpec,
    FileSpec,
    FormatSpec,
    Golden,
    InputSpec,
    Manifest,
    ModelFacts,
    NoiseSpec,
    PlanFacts,
    ProgramSpec,
    Step,
    TensorSpec,
    content_digest,
)
from sparvar.errors import ArtefactError, message

KINDS = ("class", "number", "tensor")
DISTRIBUTIONS = ("uniform", "exponential", "normal")
DIGITS = re.compile("[0-9a-f]{64}")
AXES = 64
"""Axes of a tensor at most, as in torch and NumPy."""


def read_shape(field: Field) -> tuple[int, ...]:
    """A list of at most 64 sizes, each from 0, with fewer than 2 ** 63 elements."""
    items = field.items()
    if len(items) > AXES:
        field.fail(f"have at most {AXES} axes", str(len(items)))
    shape = tuple(item.integer() for item in items)
    elements = 1
    for size in shape:
        elements *= max(size, 1)
    if elements >= 2**63:
        field.fail("be the shape of fewer than 2 ** 63 elements", str(list(shape)))
    return shape


def _texts(field: Field) -> tuple[str, ...]:
    return tuple(item.text() for item in field.items())


def _under(field: Field, prefix: str) -> str:
    name = field.text()
    if not name.startswith(prefix) or name == prefix:
        field.fail(f"begin with {prefix!r} and go on")
    return name


def _tensor(field: Field) -> TensorSpec:
    at = field.object(("dtype", "shape"))
    return TensorSpec(at["dtype"].choice(DTYPES), read_shape(at["shape"]))


def _input(field: Field) -> InputSpec:
    at = field.object(("name", "kind", "shape", "dtype"), ("default", "classes"))
    if not at["name"].text().isidentifier():
        at["name"].fail("be a plain name")
    kind, shape = at["kind"].choice(KINDS), read_shape(at["shape"])
    default = at["default"] if "default" in at and at["default"].value is not None else None
    if default is not None and kind != "number":
        default.fail("be left out: only numbers have defaults")
    if "classes" in at and kind != "class":
        at["classes"].fail("be left out: only inputs of the kind 'class' have classes")
    classes = _texts(at["classes"]) if "classes" in at else ()
    if len(set(classes)) < len(classes):
        at["classes"].fail("name every class once")
    if kind == "number" and shape:
        at["shape"].fail("be [] for a number", str(list(shape)))
    if kind == "class" and at["dtype"].value != "int64":
        at["dtype"].fail("be int64 for classes")
    dtype = at["dtype"].choice(DTYPES)
    return InputSpec(at["name"].text(), kind, shape, dtype, None if default is None else default.number(), classes)


def _noise(field: Field) -> NoiseSpec:
    at = field.object(("name", "shape", "dtype", "distribution", "per_image"))
    return NoiseSpec(
        _under(at["name"], "noise/"),
        read_shape(at["shape"]),
        at["dtype"].choice(("float32",)),
        at["distribution"].choice(DISTRIBUTIONS),
        at["per_image"].flag(),
    )


def _buffer(field: Field) -> BufferSpec:
    at = field.object(("name", "shape", "dtype"))
    return BufferSpec(_under(at["name"], "buffers/"), read_shape(at["shape"]), at["dtype"].choice(DTYPES))


def _program(field: Field) -> ProgramSpec:
    at = field.object(("file", "scale", "kind", "inputs", "outputs", "flops", "dense_flops", "workspace"))
    return ProgramSpec(
        file=at["file"].path(),
        scale=None if at["scale"].value is None else at["scale"].integer(1),
        kind=at["kind"].text(),
        inputs=tuple(map(_tensor, at["inputs"].items())),
        outputs=tuple(map(_tensor, at["outputs"].items())),
        flops=at["flops"].integer(),
        dense_flops=at["dense_flops"].integer(),
        workspace=at["workspace"].integer(),
    )


def _step(field: Field) -> Step:
    at = field.object(("program", "in", "out"), ("layers",))
    layers = None
    if "layers" in at and at["layers"].value is not None:
        layers = tuple(item.integer() for item in at["layers"].items())
        if not layers:
            at["layers"].fail("name at least one layer, or be null", "an empty list")
    return Step(at["program"].text(), _texts(at["in"]), _texts(at["out"]), layers)


def _requirement(field: Field) -> str | tuple[str, ...]:
    return field.text() if isinstance(field.value, str) else _texts(field)


def _format(field: Field) -> FormatSpec:
    at = field.object(("device", "requires", "programs", "steps"), ("native",))
    return FormatSpec(
        device=at["device"].text(),
        requires={name: _requirement(value) for name, value in at["requires"].entries().items()},
        programs={name: _program(value) for name, value in at["programs"].entries().items()},
        steps=tuple(map(_step, at["steps"].items())),
        native=tuple(item.path() for item in at["native"].items()) if "native" in at else (),
    )


def _file(path: str, field: Field) -> FileSpec:
    Field(path, field.place, field.where).path()
    at = field.object(("sha256", "bytes"))
    if not DIGITS.fullmatch(at["sha256"].text()):
        at["sha256"].fail("be 64 hexadecimal digits")
    return FileSpec(at["sha256"].text(), at["bytes"].integer())


def _golden(field: Field) -> Golden:
    entries = field.entries()
    if "file" not in entries:
        field.fail("have the key 'file'", f"only {', '.join(entries) or 'nothing'}")
    return Golden(entries.pop("file").path(), {name: entry.value for name, entry in entries.items()})


def _pair(field: Field) -> tuple[int, int]:
    items = field.items()
    if len(items) != 2:
        field.fail("be a grid [h, w]", f"{len(items)} numbers")
    return items[0].integer(1), items[1].integer(1)


def _image(field: Field) -> tuple[int, int, int]:
    items = field.items()
    if len(items) != 3:
        field.fail("be [channels, height, width]", f"{len(items)} numbers")
    return items[0].integer(1), items[1].integer(1), items[2].integer(1)


def _check_head(root: Field) -> None:
    """Refuse what is no manifest, and one of a newer schema, before any other field is looked at."""
    found = root.entries()
    for key in ("format", "schema"):
        if key not in found:
            root.fail(f"have the key {key!r}", f"only {', '.join(found) or 'nothing'}")
    found["format"].choice((FORMAT,))
    if (schema := found["schema"].integer(1)) > SCHEMA:
        remedy = "it was made by a newer sparvar: upgrade with pip install --upgrade sparvar"
        found["schema"].fail(f"be {SCHEMA} for this sparvar", str(schema), remedy)


def _build(text: str | bytes | bytearray, where: str) -> Manifest:
    """Return the manifest, each field of the right kind; what fields say of each other is not checked.

    Raises `ArtefactError`.
    """
    if len(text) > LARGEST:
        raise ArtefactError(message(where, f"have at most {LARGEST >> 20} MiB", "more"))
    root = parse(text, where)
    _check_head(root)
    at = root.object(("format", "schema", *(part.name for part in fields(Manifest))), ("digest",))
    if "digest" in at and (written := at["digest"].text()) != (found := content_digest(root.value)):
        root.fail(f"have the digest {written[:16]}... that it names", f"{found[:16]}...", "the file is damaged")
    model = at["model"].object(("name", "family", "fingerprint", "dtype", "licence"))
    plan = at["plan"].object(("file", "name", "digest"))
    return Manifest(
        created=at["created"].text(),
        tool=at["tool"].text(),
        model=ModelFacts(
            model["name"].text(),
            model["family"].text(),
            model["fingerprint"].text(),
            model["dtype"].choice(DTYPES),
            model["licence"].text(),
        ),
        plan=PlanFacts(plan["file"].path(), plan["name"].text(), plan["digest"].text()),
        schedule=tuple(map(_pair, at["schedule"].items())),
        prefix=at["prefix"].integer(),
        layers=at["layers"].integer(1),
        images=at["images"].integer(1),
        image=_image(at["image"]),
        inputs=tuple(map(_input, at["inputs"].items())),
        noise=tuple(map(_noise, at["noise"].items())),
        buffers=tuple(map(_buffer, at["buffers"].items())),
        formats={name: _format(value) for name, value in at["formats"].entries().items()},
        files={name: _file(name, value) for name, value in at["files"].entries().items()},
        golden=_golden(at["golden"]),
        memory={name: value.integer() for name, value in at["memory"].entries().items()},
    )


def parse_manifest(text: str | bytes | bytearray, where: str = MANIFEST) -> Manifest:
    """Read and check the text of a manifest; ``where`` names it in messages. Raises `ArtefactError`."""
    return check_manifest(_build(text, where), where)


def read_manifest(folder: Path | str) -> tuple[Manifest, str]:
    """Read and check ``folder/manifest.json``; return it with the sha256 of the very bytes that were read.

    Raises `ArtefactError`.
    """
    path = Path(folder) / MANIFEST
    try:
        if path.is_symlink():
            raise ArtefactError(message(str(path), "be a file", "a link", "copy the artefact with its links followed"))
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        remedy = "name the folder that sparvar export wrote"
        got = f"no readable {MANIFEST} there ({error.strerror or error})"
        raise ArtefactError(message(str(folder), "be an artefact", got, remedy)) from error
    return parse_manifest(data, str(path)), hashlib.sha256(data).hexdigest()
