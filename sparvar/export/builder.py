"""Assemble an artefact: programs, tensors, golden run and manifest, built aside and moved into place."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sparvar.artefact.execution.inputs import Request
from sparvar.artefact.manifest.reading import parse_manifest
from sparvar.artefact.manifest.schema import (
    MANIFEST,
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
from sparvar.compiler.resolve_plan import resolve_plan
from sparvar.errors import OptionError, SparvarWarning, message
from sparvar.evaluate.metrics import psnr
from sparvar.export.capture import record_blocks
from sparvar.export.formats.aoti import disk_error
from sparvar.export.formats.aoti_worker import rounds
from sparvar.export.formats.specs import tensor_spec
from sparvar.export.golden import differences, drawn_image, golden_inputs, run_traced
from sparvar.export.programs import Generation
from sparvar.export.publish import Target, readme
from sparvar.files import write_whole
from sparvar.models import Family, family_of
from sparvar.models.fingerprint import fingerprint
from sparvar.progress import Part, Silent, TaskProgress
from sparvar.scale_plans import Plan
from sparvar.scale_plans.data import OPTIONAL_FIELDS
from sparvar.version import __version__

FORMATS = ("aoti", "onnx", "tensorrt")
GOLDEN_SEED = 7
LEAST_PSNR = 45.0
"""dB that the golden image must have when it is drawn again: a sampled bit may flip on the last digit."""
LAST_BIT = 2.0**-8
"""Of bfloat16, relative to a number."""


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
    progress: TaskProgress | None = None,
    **request: Any,
) -> Path:
    """Turn a model and a plan into an artefact that runs without either.

    Args:
        model: of a known family, see `sparvar.models`, or the family itself, made with its settings.
        plan: as for `sparvar.compile`; a set of plans must have one.
        out: the folder to write, or a file ending in ``.sparvar``. An artefact that stands there is replaced when the
            new one is whole. What a stopped export compiled is found again by the next one to the same place.
        progress: told of every step and the share of the whole that is finished then.
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
    target = Target(Path(out))
    plans = resolve_plan(whole, plan)
    if len(plans.plans) != 1:
        raise OptionError(message("plan", "be one plan", f"{len(plans.plans)}", "export one artefact for each"))
    reduced = [name for name in OPTIONAL_FIELDS if getattr(plans.plans[0], name) is not None]
    if reduced:
        must = "leave out nothing but columns: programs draw every token and row of every scale"
        raise OptionError(message("plan", must, f"one with {', '.join(reduced)}", "take these out of it"))
    family = family or family_of(whole, asked.images, **asked.settings)
    progress = progress or Silent()
    with target.building() as folder:
        _Assembly(folder, family, plans.plans[0], asked).fill(target.work, progress)
        target.publish(folder)
    progress.step("done", 1.0)
    return target.path


@dataclass(frozen=True)
class _Assembly:
    """What is put into ``folder``."""

    folder: Path
    family: Family
    plan: Plan
    asked: Export

    def fill(self, work: Path, progress: TaskProgress) -> None:
        """Write every file; programs are compiled in ``work``, and those that are there already are taken."""
        for name in self.asked.formats:
            _maker(name).require()
        recording = golden_inputs(self.family, self.asked.inputs)
        progress.step("recording the blocks in one dense generation")
        inputs = {each: tensor.to(self.family.device) for each, tensor in recording.items()}
        recorded = record_blocks(self.family, self.plan, inputs)
        write_whole(self.folder / "plan.json", self.plan.dumps().encode())
        share = 0.94 / len(self.asked.formats)
        parts = {
            name: Part(progress, 0.03 + number * share, 0.03 + (number + 1) * share)
            for number, name in enumerate(self.asked.formats)
        }
        traced: dict[str, Generation] = {}
        image: Tensor | None = None
        for name, part in parts.items():
            traced[name] = _maker(name).trace(recorded, part)
            if image is None:
                part.step("drawing the golden image", 0.1)
                image = run_traced(traced[name], inputs, GOLDEN_SEED)
        assert image is not None
        # Before the programs: those of some formats point into these files.
        self._save("weights", {key: each for made in traced.values() for key, each in made.weights.items()})
        self._save("constants", {key: each for made in traced.values() for key, each in made.constants.items()})
        formats = {
            name: _maker(name).write(made, self.folder, work / name, self.asked.jobs, parts[name])
            for name, made in traced.items()
        }
        progress.step("writing tensors", 0.97)
        golden = {f"inputs/{name}": tensor for name, tensor in recording.items()}
        self._save("golden", {**golden, "image": image})
        buffers = {key: each for made in traced.values() for key, each in made.buffers.items()}
        manifest = self._manifest(formats, image, buffers)
        progress.step("measuring memory", 0.98)
        request = Request(dict(recording), GOLDEN_SEED, manifest.images)
        manifest = self._measured(manifest, request)
        progress.step("drawing the golden image with the programs", 0.99)
        drawn = drawn_image(self.folder, manifest, request)
        if drawn is not None and psnr(drawn, image) < LEAST_PSNR and self._only_rounds(manifest, traced, inputs):
            manifest = self._with_own_image(manifest, golden, drawn, psnr(drawn, image))
        (self.folder / "README.md").write_text(readme(manifest), encoding="utf-8")
        checked = parse_manifest(self._with_file(manifest, "README.md").dumps())
        (self.folder / MANIFEST).write_text(checked.dumps(), encoding="utf-8")

    def _only_rounds(self, manifest: Manifest, traced: Mapping[str, Generation], inputs: Mapping[str, Tensor]) -> bool:
        """Whether programs compute in 16 bits, and each agrees with the traced one to what such a number rounds."""
        if "aoti" not in traced:
            return False
        made = traced["aoti"]
        if not any(rounds(program.exported) for program in made.programs.values()):
            return False
        found = differences(made, Artefact(self.folder, manifest, "aoti"), inputs, GOLDEN_SEED)
        return max(found.values()) <= LAST_BIT

    def _with_own_image(
        self, manifest: Manifest, inputs: Mapping[str, Tensor], drawn: Tensor, against: float
    ) -> Manifest:
        """The manifest of an artefact whose golden image is what its programs draw.

        What computes in 16 bits rounds so much that sampled bits flip, and one that flips early makes another image;
        with other numbers of threads the model itself does. Whoever verifies the artefact should find what was
        exported.
        """
        text = f"the programs draw {against:.1f} dB of the model's own golden image: sampled bits flipped"
        remedy = "their image is the golden one; compare some images before you ship them"
        warnings.warn(f"{text}; {remedy}", SparvarWarning, stacklevel=2)
        self._save("golden", {**inputs, "image": drawn})
        facts = {**manifest.golden.facts, "model_psnr_db": round(against, 2)}
        golden = Golden(manifest.golden.file, facts)
        return self._with_file(dataclasses.replace(manifest, golden=golden), "golden.safetensors")

    def _measured(self, manifest: Manifest, request: Request) -> Manifest:
        """The manifest with the memory that a generation takes."""
        sizes = {name: (self.folder / f"{name}.safetensors").stat().st_size for name in ("weights", "constants")}
        memory = {**sizes, "buffers": sum(_bytes(each.spec) for each in manifest.buffers)}
        formats = dict(manifest.formats)
        for name, measure in (("aoti", workspace), ("onnx", resident)):
            if name not in formats:
                continue
            most, each = measure(Artefact(self.folder, manifest, name), request)
            memory.setdefault("workspace", most)
            programs = {
                program: dataclasses.replace(known, workspace=each.get(program, 0))
                for program, known in formats[name].programs.items()
            }
            formats[name] = dataclasses.replace(formats[name], programs=programs)
        return dataclasses.replace(manifest, formats=formats, memory=memory)

    def _save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Tensors as ``NAME.safetensors``, each with memory of its own."""
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
        try:
            save_file(copies, self.folder / f"{name}.safetensors")
        except SafetensorError as error:
            raise disk_error(str(error)) from error

    def _with_file(self, manifest: Manifest, name: str) -> Manifest:
        """The manifest with the checksum that a file has now."""
        return dataclasses.replace(manifest, files={**manifest.files, name: _file(self.folder / name)})

    def _manifest(self, formats: dict[str, FormatSpec], image: Tensor, buffers: Mapping[str, Tensor]) -> Manifest:
        """What the folder holds, all files that are there among it; memory is not measured yet."""
        family, plan = self.family, self.plan
        dtype = str(next(family.model.parameters()).dtype).removeprefix("torch.")
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        specs = {name: tensor_spec(tensor) for name, tensor in buffers.items()}
        facts = {"seed": GOLDEN_SEED, "psnr_db": LEAST_PSNR, "threads": torch.get_num_threads()}
        return Manifest(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            tool=f"sparvar {__version__}",
            model=ModelFacts(self.asked.name, family.name, fingerprint(family.model), dtype, self.asked.licence),
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
            buffers=tuple(BufferSpec(name, spec.shape, spec.dtype) for name, spec in specs.items()),
            formats=formats,
            files={path.relative_to(self.folder).as_posix(): _file(path) for path in paths},
            golden=Golden("golden.safetensors", facts),
            memory={},
        )


def _bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * int(getattr(torch, spec.dtype).itemsize)


def _maker(name: str) -> Any:
    return importlib.import_module(f"sparvar.export.formats.{name}_format")


def _file(path: Path) -> FileSpec:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileSpec(digest.hexdigest(), path.stat().st_size)
