"""Whether the parts of a manifest agree: paths, programs, and the values that steps hand on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sparvar.artefact.formats import FORMATS
from sparvar.artefact.manifest.paths import LIBRARIES, clashes, native_name
from sparvar.artefact.manifest.schema import (
    CONSTANTS,
    LAYER,
    MANIFEST,
    WEIGHTS,
    FormatSpec,
    Manifest,
    ProgramSpec,
    Step,
    TensorSpec,
)
from sparvar.errors import ArtefactError, message

STORED = {"weights/": WEIGHTS, "constants/": CONSTANTS}
"""Beginning of a value's name -> the file that holds the tensor."""
GIVEN = (*STORED, "inputs/", "noise/")
"""Beginnings of names of values that no step may put out."""
IMAGE = "image"


def _fail(where: str, place: str, must: str, got: object, remedy: str = "") -> ArtefactError:
    return ArtefactError(message(f"{where}: {place}", must, got, remedy))


def check_manifest(manifest: Manifest, where: str) -> Manifest:
    """Check what the fields say of each other; return the manifest. ``where`` names it in messages.

    Names of weights and constants are checked by `check_tensors`, once their files are open. Raises `ArtefactError`.
    """
    if not manifest.schedule:
        raise _fail(where, "schedule", "have at least one scale", "none")
    if not manifest.formats:
        raise _fail(where, "formats", "have at least one format", "none")
    _check_programs(manifest, where)
    _check_files(manifest, where)
    for place, names in (
        ("inputs", [entry.name for entry in manifest.inputs]),
        ("noise", [entry.name for entry in manifest.noise]),
        ("buffers", [entry.name for entry in manifest.buffers]),
    ):
        _check_once(names, where, place)
    for index, noise in enumerate(manifest.noise):
        if noise.per_image and noise.shape[:1] != (manifest.images,):
            must = f"begin with the number of images, {manifest.images}"
            raise _fail(where, f"noise[{index}].shape", must, list(noise.shape))
    for name, spec in manifest.formats.items():
        _check_format(manifest, spec, where, f"formats.{name}")
    return manifest


def _check_once(names: Iterable[str], where: str, place: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _fail(where, place, "have every name once", f"{name!r} twice")
        seen.add(name)


def _check_programs(manifest: Manifest, where: str) -> None:
    """Formats must be known, programs end as theirs do, and libraries as libraries, where a format has any.

    What decides which checks a file gets (trust, what an archive may hold) then also shows in its name.
    """
    for name, spec in manifest.formats.items():
        place = f"formats.{name}"
        if name not in FORMATS:
            raise _fail(where, place, f"be one of {', '.join(FORMATS)}", repr(name))
        rules = FORMATS[name]
        for program, entry in spec.programs.items():
            if not entry.file.endswith(rules.ending):
                must = f"end in {rules.ending}, as all programs of this format"
                raise _fail(where, f"{place}.programs.{program}.file", must, repr(entry.file))
        if spec.native and not rules.libraries:
            raise _fail(where, f"{place}.native", "be left out: the format has no libraries", list(spec.native))
        for index, path in enumerate(spec.native):
            if not path.endswith(LIBRARIES):
                raise _fail(where, f"{place}.native[{index}]", f"end in {', '.join(LIBRARIES)}", repr(path))


def _check_files(manifest: Manifest, where: str) -> None:
    if clash := clashes([MANIFEST, *manifest.files]):
        raise _fail(where, "files", "name every file once, up to case, and not the manifest", clash)
    named = []
    for name, spec in manifest.formats.items():
        programs = spec.programs.items()
        named += [(f"formats.{name}.programs.{program}.file", entry.file) for program, entry in programs]
        named += [(f"formats.{name}.native[{index}]", path) for index, path in enumerate(spec.native)]
    code = {path for _, path in named}
    data = [("plan.file", manifest.plan.file), ("golden.file", manifest.golden.file)]
    for place, path in [*data, *named]:
        if path not in manifest.files:
            raise _fail(where, place, "be one of the manifest's files", repr(path))
    for path in manifest.files:
        if native_name(path) and path not in code:
            raise _fail(where, f'files["{path}"]', "be named by a format: it is native code", "no format that does")


def _check_format(manifest: Manifest, spec: FormatSpec, where: str, place: str) -> None:
    for name, program in spec.programs.items():
        if program.scale is not None and program.scale > len(manifest.schedule):
            must = f"be one of the {len(manifest.schedule)} scales"
            raise _fail(where, f"{place}.programs.{name}.scale", must, program.scale)
    if not spec.steps:
        raise _fail(where, f"{place}.steps", "have at least one step", "none")
    known = {f"inputs/{entry.name}": entry.spec for entry in manifest.inputs}
    known |= {entry.name: entry.spec for entry in manifest.noise}
    known |= {entry.name: entry.spec for entry in manifest.buffers}
    for index, step in enumerate(spec.steps):
        _check_step(manifest, spec, step, known, where, f"{place}.steps[{index}]")
    last = f"{place}.steps[{len(spec.steps) - 1}].out"
    if IMAGE not in spec.steps[-1].outputs:
        raise _fail(where, last, f"have {IMAGE!r}: the last step puts it out", list(spec.steps[-1].outputs))
    image = TensorSpec("float32", (manifest.images, *manifest.image))
    if known[IMAGE] != image:
        raise _fail(where, last, f"put out {IMAGE!r} as {image}", known[IMAGE])


def _check_step(
    manifest: Manifest, spec: FormatSpec, step: Step, known: dict[str, TensorSpec], where: str, place: str
) -> None:
    """Run a step in thought: ``known`` has the values there are before it, and gets those that it puts out."""
    program = spec.programs.get(step.program)
    if program is None:
        raise _fail(where, f"{place}.program", "be one of the format's programs", repr(step.program))
    for side, names, specs in (("in", step.inputs, program.inputs), ("out", step.outputs, program.outputs)):
        if len(names) != len(specs):
            must = f"have as many values as program {step.program!r}, {len(specs)}"
            raise _fail(where, f"{place}.{side}", must, len(names))
        for index, name in enumerate(names):
            if step.layers is None and LAYER in name:
                raise _fail(where, f"{place}.{side}[{index}]", f"have no {LAYER} in a step without layers", repr(name))
    for layer in step.layers or ():
        if layer >= manifest.layers:
            raise _fail(where, f"{place}.layers", f"be layers from 0 to {manifest.layers - 1}", layer)
    for inputs, outputs in step.runs():
        for index, (name, wanted) in enumerate(zip(inputs, program.inputs, strict=True)):
            _check_in(manifest, name, wanted, known, where, f"{place}.in[{index}]")
        _check_once(outputs, where, f"{place}.out")
        for index, (name, made) in enumerate(zip(outputs, program.outputs, strict=True)):
            _check_out(name, made, known, where, f"{place}.out[{index}]")


def _check_in(
    manifest: Manifest, name: str, wanted: TensorSpec, known: Mapping[str, TensorSpec], where: str, place: str
) -> None:
    for prefix, file in STORED.items():
        if name.startswith(prefix):
            if file not in manifest.files:
                raise _fail(where, place, f"have its file {file} among the manifest's files", repr(name))
            return
    if name not in known:
        must = "be a value that there is: of a file, declared above, or put out by a step before"
        raise _fail(where, place, must, repr(name))
    if known[name] != wanted:
        raise _fail(where, place, f"be {wanted} for its program", f"{name!r}, which is {known[name]}")


def _check_out(name: str, made: TensorSpec, known: dict[str, TensorSpec], where: str, place: str) -> None:
    if name.startswith(GIVEN):
        raise _fail(where, place, "be a value that a step may put out", repr(name))
    if name.startswith("buffers/") and known.get(name) != made:
        raise _fail(where, place, f"be a declared buffer of {made}", f"{name!r}, {known.get(name, 'not declared')}")
    known[name] = made


def check_tensors(manifest: Manifest, name: str, tensors: Mapping[str, TensorSpec], where: str = MANIFEST) -> None:
    """Check that a format's weights and constants are there, in the dtypes and shapes that its programs take.

    ``tensors`` maps ``weights/NAME`` and ``constants/NAME`` to what the files hold. Raises `ArtefactError`.
    """
    spec = manifest.formats[name]
    for index, step in enumerate(spec.steps):
        program: ProgramSpec = spec.programs[step.program]
        for inputs, _ in step.runs():
            for position, (value, wanted) in enumerate(zip(inputs, program.inputs, strict=True)):
                if not value.startswith(tuple(STORED)):
                    continue
                place = f"formats.{name}.steps[{index}].in[{position}]"
                if value not in tensors:
                    file = next(file for prefix, file in STORED.items() if value.startswith(prefix))
                    raise _fail(where, place, f"be a tensor of {file}", repr(value))
                if tensors[value] != wanted:
                    raise _fail(where, place, f"be {wanted} for its program", f"{value!r}, which is {tensors[value]}")
