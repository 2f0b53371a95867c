"""The ``onnx`` format: one ONNX model per scale, beside the tensors' files that they all point into."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparvar.artefact.manifest.schema import CONSTANTS, WEIGHTS, FormatSpec
from sparvar.artefact.tensors import TensorFile
from sparvar.errors import OptionError, message
from sparvar.export.capture import Recorded
from sparvar.export.formats.onnx_convert import convert
from sparvar.export.formats.specs import program_specs, step_specs
from sparvar.export.plain_sites import plain_site
from sparvar.export.programs import Generation
from sparvar.export.scales import trace_scales
from sparvar.progress import Part, TaskProgress

PACKAGES = ("onnx", "onnx_ir", "onnxscript")
RUNTIME = "1.23"
"""The oldest onnxruntime that has opset 23's ``Attention``."""
KINDS = {WEIGHTS: "weights", CONSTANTS: "constants"}
SMALL = 1024
"""Bytes up to which a constant stays in its model: shapes and bounds, which a runtime wants to see at once."""


@dataclass
class OnnxGeneration(Generation):
    """A generation with its models.

    Attributes:
        models: ``onnx_ir.Model`` by program.
        places: file and tensor of every initialiser that is stored outside, by program and initialiser.
    """

    models: dict[str, Any] = field(default_factory=dict)
    places: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)


def require() -> None:
    """Raise `OptionError` where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        must = f"find the packages {', '.join(PACKAGES)}"
        raise OptionError(message("format onnx", must, f"no {', '.join(missing)}", "pip install 'sparvar[export]'"))


def trace(recorded: Recorded, progress: TaskProgress) -> Generation:
    """The generation as whole scales, each with its ONNX model.

    Raises:
        OptionError: a package is missing.
        CaptureError: an op has no translation.
        PlanError: the plan's index map cannot be expressed.
    """
    require()
    found = OnnxGeneration(**vars(trace_scales(recorded, plain_site, Part(progress, 0.05, 0.05))))
    stored = _Stored(found)
    for number, (name, program) in enumerate(found.programs.items()):
        progress.step(f"writing {name} as ONNX", 0.1 + 0.8 * number / len(found.programs))
        model = convert(program)
        found.models[name], found.places[name] = model, stored.places(model)
    stored.drop_unused()
    return found


def write(made: Generation, folder: Path, work: Path, jobs: int, progress: TaskProgress) -> FormatSpec:
    """Save the models into ``folder``, where the tensors' files are already.

    They lie side by side because ONNX lets a model point only to files in its own folder or below.
    """
    import onnx_ir as ir

    assert isinstance(made, OnnxGeneration)
    files = {name: TensorFile(folder / name) for name in (WEIGHTS, CONSTANTS)}
    for name, model in made.models.items():
        progress.step(f"saving {name}.onnx", 0.95)
        for value, (file, tensor) in made.places[name].items():
            initialiser = model.graph.initializers[value]
            offset, length = files[file].span(tensor)
            inner = initialiser.const_value
            initialiser.const_value = ir.ExternalTensor(
                file, offset, length, inner.dtype, shape=inner.shape, name=value, base_dir=str(folder)
            )
        ir.save(model, folder / f"{name}.onnx")
    return FormatSpec(
        device=made.family.device.type,
        requires={"onnxruntime": RUNTIME},
        programs=program_specs(made, lambda name: f"{name}.onnx"),
        steps=step_specs(made),
    )


class _Stored:
    """Where tensors are stored: equal ones once, whatever programs call them."""

    def __init__(self, made: OnnxGeneration) -> None:
        self.made = made
        self.known: dict[str, tuple[str, str]] = {}
        self.used: set[tuple[str, str]] = set()
        for file, tensors in ((CONSTANTS, made.constants), (WEIGHTS, made.weights)):
            for name, tensor in tensors.items():
                self.known[_key(tensor.detach().cpu().contiguous().numpy())] = file, name

    def places(self, model: Any) -> dict[str, tuple[str, str]]:
        """The place of every initialiser of a model that is a weight or not small; new ones become constants.

        The initialisers get the names of their tensors, behind ``weights/`` or ``constants/``.
        """
        found: dict[str, tuple[str, str]] = {}
        for value in list(model.graph.initializers.values()):
            array = value.const_value.numpy()
            key = _key(array)
            if key not in self.known:
                if array.nbytes <= SMALL:
                    continue
                self.known[key] = CONSTANTS, f"onnx.{key[:16]}"
                self.made.constants[f"onnx.{key[:16]}"] = torch.from_numpy(array.copy())
            file, name = self.known[key]
            title = f"{KINDS[file]}/{name}"
            if title not in found:
                value.name = title
            elif not value.is_graph_output():  # equal tensors under two names
                value.replace_all_uses_with(model.graph.initializers[title])
                del model.graph.initializers[value.name]
                continue
            found[value.name] = file, name
        self.used.update(found.values())
        return found

    def drop_unused(self) -> None:
        """Leave out of the files what no model points to."""
        for file, tensors in ((CONSTANTS, self.made.constants), (WEIGHTS, self.made.weights)):
            for name in [name for name in tensors if (file, name) not in self.used]:
                del tensors[name]


def _key(array: Any) -> str:
    """Equal for arrays of equal dtype, shape and bytes."""
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
