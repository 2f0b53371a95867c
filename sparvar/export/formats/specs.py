"""What the manifest says of programs and steps, the same for every format."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparvar.artefact.manifest.schema import ProgramSpec, Step, TensorSpec
from sparvar.export.programs import Generation
from sparvar.export.trace import Program


def tensor_spec(tensor: torch.Tensor) -> TensorSpec:
    """Dtype and shape of a tensor or of an example of one."""
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(int(size) for size in tensor.shape))


def program_specs(made: Generation, file: Callable[[str], str]) -> dict[str, ProgramSpec]:
    """Every program by name; ``file`` gives the path of one."""
    return {name: _program(program, file(name)) for name, program in made.programs.items()}


def _program(program: Program, file: str) -> ProgramSpec:
    inputs, outputs = [], []
    given = set(program.exported.graph_signature.user_inputs)  # and not the parameters of whole scales
    for node in program.exported.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            inputs.append(tensor_spec(node.meta["val"]))
        elif node.op == "output":
            outputs = [tensor_spec(each.meta["val"]) for each in node.args[0]]
    count = len(program.outputs)  # a mutated input may come first in the graph's own outputs
    return ProgramSpec(
        file=file,
        scale=program.scale or None,
        kind=program.kind,
        inputs=tuple(inputs),
        outputs=tuple(outputs[len(outputs) - count :]),
        flops=program.flops,
        dense_flops=program.dense_flops,
        workspace=0,
    )


def step_specs(made: Generation) -> tuple[Step, ...]:
    """The steps of a generation."""
    return tuple(Step(step.program, step.inputs, step.outputs, step.layers) for step in made.steps)
