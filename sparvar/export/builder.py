"""Assemble an artefact: programs, tensors, golden run and manifest, built aside and moved into place."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import importlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sparvar.artefact.execution.inputs import Request
from sparvar.artefact.files import pack
from sparvar.artefact.manifest.reading import parse_manifest
from sparvar.artefact.manifest.schema import (
    BufferSpec,
    FileSpec,
    FormatSpec,
    Golden,
    InputSpec,
    Manifest,
    ModelFacts,
    NoiseSpec,
    PlanFacts,
    TensorSpec,
)
from sparvar.artefact.memory import resident, workspace
from sparvar.artefact.session import Artefact
from sparvar.artefact.trust import remember
from sparvar.artefact.verify import psnr
from sparvar.compiler.resolve_plan import resolve_plan
from sparvar.errors import OptionError, OutputError, SparvarWarning, message
from sparvar.export.formats.aoti import disk_error
from sparvar.export.formats.aoti_worker import rounds
from sparvar.export.formats.specs import tensor_spec
from sparvar.export.golden import differences, drawn_image, golden_inputs, run_traced
from sparvar.export.programs import Generation, record_blocks
from sparvar.export.publish import readme
from sparvar.models import Family, family_of
from sparvar.models.fingerprint import fingerprint
from sparvar.private_files import UnsafeFileError, tighten
from sparvar.scale_plans import Plan, write_whole
from sparvar.scale_plans.data import OPTIONAL_FIELDS
from sparvar.version import __version__

FORMATS = ("aoti", "onnx", "tensorrt")
GOLDEN_SEED = 7
LEAST_PSNR = 45.0
"""dB that the golden image must have when it is drawn again: a sampled bit may flip on the last digit."""
LAST_BIT = 2.0**-8
"""Of bfloat16, relative to a number."""
Say = Callable[[str, float], None]
"""(what is being done, share of the whole that is finished)."""


@dataclass(frozen=True)
class Export:
    """What is to be exported.

    Attributes:
        name: of the model, as whoever receives the artefact will read it.
        formats: of `FORMATS`.
        images: of one run of the programs.
        licence: of the weights.
        jobs: compiling processes, 0 for as many as the machine has room for.
        settings: of the family.
        inputs: example of every input that is a tensor, for the golden run.
    """

    name: str
    formats: Sequence[str] = ("aoti",)
    images: int = 1
    licence: str = "not stated"
    jobs: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


def export_artefact(
    model: nn.Module | Family,
    plan: Any,
    out: str | os.PathLike[str],
    *,
    say: Say = lambda _text, _share: None,
    **request: Any,
) -> Path:
    """Turn a model and a plan into an artefact that runs without either.

    Args:
        model: of a known family, see `sparvar.models`, or the family itself, made with its settings.
        plan: as for `sparvar.compile`; a set of plans must have one.
        out: the folder to write, or a file ending in ``.sparvar``. An artefact that stands there is replaced when the
            new one is whole. What a stopped export compiled is found again by the next one to the same place.
        say: told what is being done.
        request: see `Export`.

    Raises:
        OptionError: an argument is wrong.
        CaptureError: the model is of no known family, or its blocks cannot be captured.
        PlanError: the plan does not fit the model.
        OutputError: the place cannot be written, or another export is writing there.
        ArtefactError: a program does not compile.
    """
    family = model if isinstance(model, Family) else None
    whole: nn.Module = model.model if isinstance(model, Family) else model
    asked = Export(name=request.pop("name", type(whole).__name__), **request)
    unknown = [each for each in asked.formats if each not in FORMATS]
    if unknown or not asked.formats:
        raise OptionError(message("formats", f"be of {', '.join(FORMATS)}", ", ".join(unknown) or "none"))
    target = Path(out)
    single = target.suffix == ".sparvar"
    _check_target(target, single)
    plans = resolve_plan(whole, plan)
    if len(plans.plans) != 1:
        raise OptionError(message("plan", "be one plan", f"{len(plans.plans)}", "export one artefact for each"))
    reduced = [name for name in OPTIONAL_FIELDS if getattr(plans.plans[0], name) is not None]
    if reduced:
        must = "leave out nothing but columns: programs draw every token and row of every scale"
        raise OptionError(message("plan", must, f"one with {', '.join(reduced)}", "take these out of it"))
    family = family or family_of(whole, asked.images, **asked.settings)
    work = target.with_name(f".{target.name}.partial")
    with _held(work), _disk(target):
        folder = work / "artefact"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fill(folder, work, family, plans.plans[0], asked, say)
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        if single:
            pack(folder, target)
        else:
            _move(folder, target)
        remember(digest)
        shutil.rmtree(work, ignore_errors=True)
    say("done", 1.0)
    return target


def _check_target(target: Path, single: bool) -> None:
    if not target.parent.is_dir():
        raise OutputError(message(str(target), "be in a folder that exists", "none", "make it, or name another"))
    if single and target.is_dir():
        raise OutputError(message(str(target), "be a file or absent", "a folder", "name a folder without .sparvar"))
    if not single and target.exists() and not (target / "manifest.json").is_file():
        raise OutputError(message(str(target), "be absent or an artefact", "something else", "name another folder"))


def _fill(folder: Path, work: Path, family: Family, plan: Plan, asked: Export, say: Say) -> None:
    for name in asked.formats:
        _maker(name).require()
    recording = golden_inputs(family, asked.inputs)
    inputs = {each: tensor.to(family.device) for each, tensor in recording.items()}
    say("recording the blocks in one dense generation", 0.0)
    recorded = record_blocks(family, plan, inputs)
    write_whole(folder / "plan.json", plan.dumps().encode())
    weights: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    formats: dict[str, FormatSpec] = {}
    traced: dict[str, tuple[Generation, Callable[[str, float], None]]] = {}
    image: Tensor | None = None
    share = 1 / len(asked.formats)
    for number, name in enumerate(asked.formats):
        base = number * share

        def told(text: str, part: float, base: float = base) -> None:
            say(text, 0.03 + 0.94 * (base + share * part))

        made: Generation = _maker(name).trace(family, plan, recorded, inputs, told)
        traced[name] = made, told
        weights.update(made.weights)
        constants.update(made.constants)
        buffers.update(made.buffers)
        if image is None:
            told("drawing the golden image", 0.1)
            image = run_traced(made, inputs, GOLDEN_SEED)
    assert image is not None
    # Before the programs: those of some formats point into these files.
    _save(folder / "weights.safetensors", weights)
    _save(folder / "constants.safetensors", constants)
    for name, (generation, tell) in traced.items():
        formats[name] = _maker(name).write(generation, folder, work / name, asked.jobs, tell)
    say("writing tensors", 0.97)
    golden = {f"inputs/{name}": tensor for name, tensor in recording.items()}
    _save(folder / "golden.safetensors", {**golden, "image": image})
    manifest = _manifest(folder, family, plan, asked, formats, image, buffers)
    say("measuring memory", 0.98)
    manifest = _measured(folder, manifest, recording)
    say("drawing the golden image with the programs", 0.99)
    drawn = drawn_image(folder, manifest, Request(dict(recording), GOLDEN_SEED, manifest.images))
    if drawn is not None and psnr(drawn, image) < LEAST_PSNR and _only_rounds(folder, manifest, traced, inputs):
        manifest = _with_own_image(folder, manifest, golden, drawn, psnr(drawn, image))
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8")
    manifest = dataclasses.replace(manifest, files={**manifest.files, "README.md": _file(folder / "README.md")})
    (folder / "manifest.json").write_text(parse_manifest(manifest.dumps()).dumps(), encoding="utf-8")


def _only_rounds(
    folder: Path, manifest: Manifest, traced: Mapping[str, tuple[Generation, Any]], inputs: Mapping[str, Tensor]
) -> bool:
    """Whether programs compute in 16 bits, and each agrees with the traced one to what such a number rounds."""
    if "aoti" not in traced:
        return False
    made = traced["aoti"][0]
    if not any(rounds(program.exported) for program in made.programs.values()):
        return False
    found = differences(made, Artefact(folder, manifest, "aoti"), inputs, GOLDEN_SEED)
    return max(found.values()) <= LAST_BIT


def _with_own_image(
    folder: Path, manifest: Manifest, inputs: Mapping[str, Tensor], drawn: Tensor, against: float
) -> Manifest:
    """The manifest of an artefact whose golden image is what its programs draw.

    What computes in 16 bits rounds so much that sampled bits flip, and one that flips early makes another image; with
    other numbers of threads the model itself does. Whoever verifies the artefact should find what was exported.
    """
    text = f"the programs draw {against:.1f} dB of the model's own golden image: sampled bits flipped"
    remedy = "their image is the golden one; compare some images before you ship them"
    warnings.warn(f"{text}; {remedy}", SparvarWarning, stacklevel=2)
    _save(folder / "golden.safetensors", {**inputs, "image": drawn})
    facts = {**manifest.golden.facts, "model_psnr_db": round(against, 2)}
    return dataclasses.replace(
        manifest,
        golden=Golden(manifest.golden.file, facts),
        files={**manifest.files, "golden.safetensors": _file(folder / "golden.safetensors")},
    )


def _measured(folder: Path, manifest: Manifest, inputs: Mapping[str, Tensor]) -> Manifest:
    """The manifest with the memory that a generation takes."""
    sizes = {name: (folder / f"{name}.safetensors").stat().st_size for name in ("weights", "constants")}
    memory = {**sizes, "buffers": sum(_bytes(each.spec) for each in manifest.buffers)}
    formats = dict(manifest.formats)
    for name, measure in (("aoti", workspace), ("onnx", resident)):
        if name not in formats:
            continue
        most, each = measure(Artefact(folder, manifest, name), Request(dict(inputs), GOLDEN_SEED, manifest.images))
        memory.setdefault("workspace", most)
        programs = {
            program: dataclasses.replace(known, workspace=each.get(program, 0))
            for program, known in formats[name].programs.items()
        }
        formats[name] = dataclasses.replace(formats[name], programs=programs)
    return dataclasses.replace(manifest, formats=formats, memory=memory)


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * int(getattr(torch, spec.dtype).itemsize)


def _maker(name: str) -> Any:
    return importlib.import_module(f"sparvar.export.formats.{name}_format")


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors, each with memory of its own."""
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    try:
        save_file(copies, path)
    except SafetensorError as error:
        raise disk_error(str(error)) from error


def _manifest(
    folder: Path,
    family: Family,
    plan: Plan,
    asked: Export,
    formats: dict[str, FormatSpec],
    image: Tensor,
    buffers: Mapping[str, Tensor],
) -> Manifest:
    dtype = str(next(family.model.parameters()).dtype).removeprefix("torch.")
    return Manifest(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        tool=f"sparvar {__version__}",
        model=ModelFacts(asked.name, family.name, fingerprint(family.model), dtype, asked.licence),
        plan=PlanFacts("plan.json", plan.name, plan.digest),
        schedule=tuple((h, w) for h, w in family.schedule),
        prefix=family.prefix,
        layers=family.layers,
        images=family.images,
        image=(image.shape[1], image.shape[2], image.shape[3]),
        inputs=tuple(
            InputSpec(each.name, each.kind, tuple(each.shape), each.dtype, each.default, each.classes)
            for each in family.inputs
        ),
        noise=tuple(
            NoiseSpec(each.name, tuple(each.shape), each.dtype, each.distribution, each.per_image)
            for each in family.noise
        ),
        buffers=tuple(BufferSpec(name, spec.shape, spec.dtype) for name, spec in _specs(buffers).items()),
        formats=formats,
        files={
            path.relative_to(folder).as_posix(): _file(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
        golden=Golden(
            "golden.safetensors", {"seed": GOLDEN_SEED, "psnr_db": LEAST_PSNR, "threads": torch.get_num_threads()}
        ),
        memory={},
    )


def _specs(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: tensor_spec(tensor) for name, tensor in tensors.items()}


def _file(path: Path) -> FileSpec:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileSpec(digest.hexdigest(), path.stat().st_size)


def _move(folder: Path, target: Path) -> None:
    """Put ``folder`` at ``target``; what stood there goes when the new one is in place."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(folder, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _held(work: Path) -> Iterator[None]:
    """Hold the place where an export builds: two to the same target do not mix, and no other user writes there."""
    import fcntl

    try:
        tighten(work)
        handle = (work / "lock").open("w")
    except UnsafeFileError as error:
        remedy = "what is compiled there is run: delete it, or name another place"
        raise OutputError(message(str(work), error.must, error.got, remedy)) from error
    except OSError as error:
        raise OutputError(message(str(work), "be writable", error.strerror or str(error))) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            must = "be written by one export at a time"
            raise OutputError(message(str(work), must, "another that is running", "wait for it")) from error
        yield


@contextlib.contextmanager
def _disk(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "a full disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
        remedy = "nothing was put there; make room and export again, which goes on where this stopped"
        raise OutputError(message(str(target), "be writable", reason, remedy)) from error


__all__ = ["FORMATS", "Export", "export_artefact"]
