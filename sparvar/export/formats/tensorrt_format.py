"""The ``tensorrt`` format: one engine per scale, built by torch-tensorrt, with the weights outside.

No engine has been built where this was written: TensorRT's libraries need an NVIDIA GPU. What is checked there is that
every op has a converter (`sparvar.export.formats.tensorrt_coverage`) and that the calls are those which torch-tensorrt
documents for 2.11 to 2.13.

Weights are inputs of the engines, as they are of the ``aoti`` programs, so that engines hold none to strip: they are
stored and loaded once for all scales. Refitting stripped engines would need torch-tensorrt's own names of weights at
run time, and a copy of them in every engine.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparvar.artefact.engines.tensorrt import facts
from sparvar.artefact.manifest.schema import FormatSpec, ProgramSpec
from sparvar.compiler.resolve_plan import resolve_plan
from sparvar.errors import ArtefactError, CaptureError, OptionError, message
from sparvar.export.capture import Recorded, record_blocks
from sparvar.export.formats.specs import program_specs, step_specs
from sparvar.export.formats.tensorrt_coverage import Coverage, covered, lowered
from sparvar.export.golden import golden_inputs
from sparvar.export.plain_sites import plain_site
from sparvar.export.programs import Generation
from sparvar.export.scales import trace_scales
from sparvar.models import Family, family_of
from sparvar.progress import Part, Silent, TaskProgress

SETTINGS = {
    "require_full_compilation": True,
    "truncate_double": True,
    "immutable_weights": True,
}
"""Of every engine: all of it in TensorRT, and constants, which are tables of indices, that no one refits."""


def require() -> None:
    """Raise `OptionError` where torch-tensorrt is missing."""
    missing = [name for name in ("torch_tensorrt", "tensorrt") if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            message(
                "format tensorrt",
                "find the packages torch_tensorrt and tensorrt",
                f"no {', '.join(missing)}",
                "pip install 'sparvar[tensorrt]' on a machine with an NVIDIA GPU;"
                " sparvar.export.tensorrt_coverage shows without it which ops TensorRT takes",
            )
        )


def trace(recorded: Recorded, progress: TaskProgress) -> Generation:
    """The generation as whole scales in ops that have converters.

    Raises:
        CaptureError: an op has none.
    """
    made = traced(recorded, progress)
    coverage = covered({name: program.exported for name, program in made.programs.items()})
    if not coverage.ok:
        found = "; ".join(f"{name}: {', '.join(refused)}" for name, refused in coverage.refused.items() if refused)
        raise CaptureError(message("programs", "be made of ops that TensorRT has", found, "export it as aoti or onnx"))
    return made


def traced(recorded: Recorded, progress: TaskProgress) -> Generation:
    """The same without the check. TensorRT has no float64: numbers come in as float32."""
    single = {name: each.float() if each.is_floating_point() else each for name, each in recorded.inputs.items()}
    of_single = dataclasses.replace(recorded, inputs=single)
    made = trace_scales(of_single, plain_site, Part(progress, 0.05, 0.05), lifted=True)
    for program in made.programs.values():
        program.exported = lowered(program.exported)
    return made


def tensorrt_coverage(model: nn.Module | Family, plan: Any = "auto", **settings: Any) -> Coverage:
    """Which ops of a model's programs TensorRT takes; needs neither its libraries nor a GPU.

    Args:
        model: of a known family, or the family itself.
        plan: as for `sparvar.compile`.
        settings: of the family; ``inputs`` gives examples of inputs that are tensors.
    """
    examples = settings.pop("inputs", {})
    family = model if isinstance(model, Family) else family_of(model, **settings)
    chosen = resolve_plan(family.model, plan).plans[0]
    made = traced(record_blocks(family, chosen, golden_inputs(family, examples)), Silent())
    return covered({name: program.exported for name, program in made.programs.items()})


def write(made: Generation, folder: Path, work: Path, jobs: int, progress: TaskProgress) -> FormatSpec:
    """Build an engine of every program into ``folder/tensorrt``.

    Raises:
        ArtefactError: an engine cannot be built.
    """
    require()
    compiler = importlib.import_module("torch_tensorrt.dynamo")
    place = folder / "tensorrt"
    place.mkdir()
    for number, (name, program) in enumerate(made.programs.items()):
        progress.step(f"building {name}", 0.15 + 0.85 * number / len(made.programs))
        given = set(program.exported.graph_signature.user_inputs)
        metas = [node.meta["val"] for node in program.exported.graph.nodes if node.name in given]
        examples = [torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) for meta in metas]
        try:
            engine = compiler.convert_exported_program_to_serialized_trt_engine(
                program.exported, arg_inputs=examples, **SETTINGS
            )
        except Exception as error:  # of TensorRT's own classes, which derive from nothing narrower
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ArtefactError(message(f"program {name}", "become a TensorRT engine", reason)) from error
        (place / f"{name}.engine").write_bytes(bytes(engine))
    specs = program_specs(made, lambda name: f"tensorrt/{name}.engine")
    numbers = {f"inputs/{each.name}": each.dtype for each in made.family.inputs}
    return FormatSpec(
        device="cuda",
        requires=facts(),
        programs={name: _as_given(spec, made.programs[name].inputs, numbers) for name, spec in specs.items()},
        steps=step_specs(made),
    )


def _as_given(spec: ProgramSpec, names: list[str], dtypes: dict[str, str]) -> ProgramSpec:
    """The program with inputs in the dtypes that callers give; the runtime brings them to the engine's."""
    inputs = tuple(
        dataclasses.replace(each, dtype=dtypes.get(name, each.dtype))
        for name, each in zip(names, spec.inputs, strict=True)
    )
    return dataclasses.replace(spec, inputs=inputs)
