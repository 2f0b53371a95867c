"""What a caller gives, checked and cut into runs of the programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparvar.artefact.manifest.schema import InputSpec, Manifest
from sparvar.errors import ArtefactError, message


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        values: by input's name, of the shapes that the programs take.
        seed: of the run's first image.
        wanted: images that were asked for; the others fill up the run.
    """

    values: Mapping[str, Any]
    seed: int
    wanted: int


def requests(manifest: Manifest, first: Sequence[Any], seed: int, given: Mapping[str, Any]) -> Iterator[Request]:
    """Check a caller's inputs and yield one request per run.

    Raises:
        ArtefactError: an input is unknown, missing, or has a wrong value or shape.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    values = dict(given)
    if len(first) > 1:
        raise ArtefactError(message("generate", "be given one input by position", len(first), "name the others"))
    if first:
        name = manifest.inputs[0].name
        if name in values:
            raise ArtefactError(message(f"input {name}", "be given once", "by position and by name"))
        values[name] = first[0]
    unknown = [name for name in values if name not in specs]
    if unknown:
        raise ArtefactError(message("inputs", f"be among {', '.join(specs)}", ", ".join(unknown)))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArtefactError(message("seed", "be a whole number", repr(seed)))
    ready = {name: _value(spec, values, manifest.images) for name, spec in specs.items()}
    batched = [name for name, spec in specs.items() if spec.kind != "number"]
    counts = {name: len(ready[name]) for name in batched}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ArtefactError(message("inputs", "be for the same number of images", text))
    total = next(iter(counts.values()), manifest.images)
    for start in range(0, total, manifest.images):
        wanted = min(manifest.images, total - start)
        rows = [start + min(number, wanted - 1) for number in range(manifest.images)]
        yield Request(
            {name: _rows(value, rows) if name in batched else value for name, value in ready.items()},
            seed + start,
            wanted,
        )


def _rows(value: Any, rows: list[int]) -> Any:
    return [value[row] for row in rows] if isinstance(value, list) else value[rows]


def _value(spec: InputSpec, values: Mapping[str, Any], images: int) -> Any:
    if spec.name not in values or values[spec.name] is None:
        if spec.default is None:
            raise ArtefactError(message(f"input {spec.name}", "be given", "nothing"))
        return spec.default
    value = values[spec.name]
    if spec.kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArtefactError(message(f"input {spec.name}", "be a number", repr(value)))
        return float(value)
    if spec.kind == "class":
        labels = [value] if isinstance(value, str | int) else list(value)
        if not labels:
            raise ArtefactError(message(f"input {spec.name}", "name at least one class", "none"))
        return [_class(spec, label) for label in labels]
    shape = tuple(getattr(value, "shape", ()))
    wanted = ("images", *map(str, spec.shape[1:]))
    if len(shape) != len(spec.shape) or shape[1:] != tuple(spec.shape[1:]) or not shape[0]:
        raise ArtefactError(
            message(f"input {spec.name}", f"be a tensor [{', '.join(wanted)}] of {spec.dtype}", list(shape))
        )
    return value


def _class(spec: InputSpec, label: Any) -> int:
    if isinstance(label, str) and label in spec.classes:
        return list(spec.classes).index(label)
    number = int(label) if isinstance(label, str) and label.isdigit() else label
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < (len(spec.classes) or 1 << 62):
        return number
    names = ", ".join(f"{index} {name}" for index, name in enumerate(spec.classes))
    raise ArtefactError(message(f"input {spec.name}", f"be a class or its number ({names})", repr(label)))
