"""The golden run: inputs that are recorded with an artefact and the image that they must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparvar.artefact.execution.executor import Chain
from sparvar.artefact.execution.inputs import Request
from sparvar.artefact.manifest.schema import Manifest
from sparvar.artefact.session import KEPT, Artefact
from sparvar.errors import OptionError, message
from sparvar.export.programs import Generation
from sparvar.models import Family, Input


def golden_inputs(family: Family, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor per input: those given, classes 0, 1, ... and the defaults of numbers.

    Raises:
        OptionError: an input that is a tensor has no example, or one of another shape.
    """
    unknown = set(given) - {each.name for each in family.inputs}
    if unknown:
        known = ", ".join(each.name for each in family.inputs)
        raise OptionError(message("inputs", f"be among {known}", ", ".join(sorted(unknown))))
    return {each.name: _example(each, given.get(each.name)) for each in family.inputs}


def _example(spec: Input, given: Tensor | None) -> Tensor:
    dtype = getattr(torch, spec.dtype)
    if given is not None:
        if tuple(given.shape) != tuple(spec.shape):
            raise OptionError(message(f"input {spec.name}", f"have the shape {list(spec.shape)}", list(given.shape)))
        return given.to(dtype)
    if spec.kind == "class":
        count = len(spec.classes) or spec.shape[0]
        return (torch.arange(spec.shape[0]) % count).to(dtype)
    if spec.kind == "number" and spec.default is not None:
        return torch.tensor(spec.default, dtype=dtype)
    raise OptionError(
        message(f"input {spec.name}", "have an example, to record a golden image with", "none", "pass inputs={...}")
    )


def drawn_image(folder: Path, manifest: Manifest, request: Request) -> Tensor | None:
    """The images [images, 3, H, W] that the compiled programs of ``folder`` make, in the first format that runs here.

    None where none does: engines may be built for another machine.
    """
    for name in ("aoti", "onnx"):
        if name in manifest.formats:
            artefact = Artefact(folder, manifest, name)
            with artefact.session() as session:
                images = artefact.engine.images(session.run(request), manifest.images)
            return torch.as_tensor(images).float().cpu()
    return None


def differences(made: Generation, artefact: Artefact, inputs: Mapping[str, Tensor], seed: int) -> dict[str, float]:
    """Largest difference of each program's outputs, compiled and traced, on what the traced ones were given.

    Relative to the largest value of an output, at least 1, and of integers the share that differ. ``artefact`` is in
    the format ``aoti``.
    """
    worst: dict[str, float] = {}

    def both(name: str, module: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            copies = [each.clone() for each in given]
            wanted = module(*given)
            outputs = list(wanted) if isinstance(wanted, tuple | list) else [wanted]
            for found, each in zip(artefact.programs[name](copies), outputs, strict=True):
                if each.dtype.is_floating_point:
                    error = float((found.double() - each.double()).abs().max() / each.double().abs().max().clamp_min(1))
                else:
                    error = float((found != each).double().mean())
                worst[name] = max(error, worst.get(name, 0.0))
            return wanted

        return run

    run_traced(made, inputs, seed, both)
    return worst


def run_traced(
    made: Generation,
    inputs: Mapping[str, Tensor],
    seed: int,
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]] = lambda name, program: program,
) -> Tensor:
    """Run the traced programs with torch, before any compiler has seen them: images [images, 3, H, W].

    ``wrap`` may put something around each program, such as a comparison with the compiled one.
    """
    device = made.family.device
    chain = Chain(made.steps, KEPT)
    modules = {name: wrap(name, program.exported.module(check_guards=False)) for name, program in made.programs.items()}
    noise = {name: tensor.to(device) for name, tensor in made.family.draw(seed).items()}
    values: dict[str, Tensor] = {
        **{f"inputs/{name}": tensor.to(device) for name, tensor in inputs.items()},
        **{f"weights/{name}": tensor for name, tensor in made.weights.items()},
        **{f"constants/{name}": tensor.to(device) for name, tensor in made.constants.items()},
        **{name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for name, tensor in made.buffers.items()},
    }

    def runner(name: str):  # type: ignore[no-untyped-def]
        def run(values: list[Tensor]) -> list[Tensor]:
            out = modules[name](*values)
            return list(out) if isinstance(out, tuple | list) else [out]

        return run

    with torch.no_grad():
        image = chain.run({name: runner(name) for name in modules}, chain.table(values), noise.__getitem__)
    assert isinstance(image, Tensor)
    return image.float().cpu()
