"""Whole scales as one program each, without custom ops or mutation: what ONNX and TensorRT take.

Weights are the programs' own parameters, so that a program is complete for whoever opens it alone, or inputs; the
formats store them once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from sparvar.export.capture import Recorded
from sparvar.export.programs import Generation, Tracer, flops_of
from sparvar.export.rewrite import BlockProgram, SiteMaker, block_program
from sparvar.export.trace import Program, export_function, weight_names
from sparvar.models import State
from sparvar.progress import Progress, Silent
from sparvar.runtime.generation_loop import through_blocks


def weight_of(roots: Mapping[str, nn.Module], path: str) -> Tensor:
    """A parameter or buffer by its path; the root's name leads."""
    root, *parts = path.split(".")
    found: Any = roots[root]
    for part in parts:
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def trace_scales(
    recorded: Recorded, site: SiteMaker, progress: Progress | None = None, lifted: bool = False
) -> Generation:
    """Trace ``begin``, one program per scale and ``decode``.

    Keys and values are the values ``k.LAYER`` and ``v.LAYER``, which grow from scale to scale; the last scale puts none
    out. Constants of the blocks, such as rotations, are baked into the programs. `Generation.weights` and
    `Generation.constants` hold them under the names that `sparvar.export.blocks.trace_blocks` gives them.

    Args:
        recorded: the blocks, the plan that says what runs where, and examples of the inputs.
        site: makes what stands for attention, from ops that the format has.
        progress: told of every scale.
        lifted: weights are inputs ``weights/NAME`` of the programs instead of their parameters.
    """
    return _Scales(recorded, site, progress or Silent(), lifted).traced()


class _Reads(dict[str, Tensor]):
    """Values that note which of them are read."""

    def __init__(self, values: Mapping[str, Tensor], read: set[str] | None = None) -> None:
        super().__init__(values)
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def having(self, x: Tensor) -> _Reads:
        """The same with another ``x``."""
        return _Reads({**self, "x": x}, self.read)


class _Scales(Tracer):
    def __init__(self, recorded: Recorded, site: SiteMaker, progress: Progress, lifted: bool) -> None:
        super().__init__(recorded, site, progress)
        self.lifted = lifted
        self.known = weight_names(self.family)
        single = f"{next(iter(self.family.roots))}." if len(self.family.roots) == 1 else ""
        self.paths = {tensor: f"{single}{name}" for tensor, name in self.known.items()}

    def add(self, name: str, scale: int, kind: str, function: Callable[[State], State], given: State) -> State:
        """Trace a function of the values that it reads; returns what it gives."""
        if self.lifted:
            return super().add(name, scale, kind, function, given)
        seen = _Reads(given)
        out = function(seen)
        names = [each for each in given if each in seen.read]
        exported = export_function(self.family, function, {each: given[each] for each in names})
        self._store(exported)
        self._add(Program(name, scale, kind, exported, names, list(out)))
        return out

    def _store(self, exported: ExportedProgram) -> None:
        """Note the weights that a program reads, by their names in the artefact."""
        read = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
        for spec in exported.graph_signature.input_specs:
            if spec.arg.name in read and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                assert spec.target is not None
                tensor = weight_of(self.family.roots, spec.target.removeprefix("roots."))
                self.made.weights[self.weight_name(self.known[id(tensor)])] = tensor

    def trace_scale(self, scale: int, state: State) -> State:
        graph, kinds = self.recorded.of(scale), self.kinds[scale]
        inputs, used = self.inputs_of(graph), sorted(set(kinds))

        def made(kind: str) -> BlockProgram:
            return block_program(graph, kind, self.plan, inputs, self.site, functional=True)

        blocks = {kind: made(kind) for kind in used}
        noises = self.noise_examples(scale)

        def run(given: State) -> State:
            values = given if isinstance(given, _Reads) else _Reads(given)
            out: State = {}

            def block(layer: int, x: Tensor, state: State, scale: int) -> Tensor:
                found = self._block(blocks[kinds[layer]], layer, values.having(x))
                x = found.pop("x")
                out.update(found)
                return x

            x = through_blocks(self.family, scale, values["x"], values, block)
            noise = {name: values[name] for name in noises}
            out.update(self.family.leave(scale, values.having(x), noise))
            return out

        name = f"scale{scale:02d}"
        out = self.add(name, scale, "+".join(used), run, {**state, **noises})
        dense = blocks.get("dense") or made("dense")
        dense_flops = flops_of(dense.module, dense.examples, self.family.device)
        program = self.made.programs[name]
        program.dense_flops = len(kinds) * dense_flops
        program.flops = sum(self.block_flops(blocks[kind], dense_flops) for kind in kinds)
        # What the next scale replaces goes; columns and corrections stay.
        return {name: tensor for name, tensor in {**state, **out}.items() if name != "x" or name in out}

    def _block(self, block: BlockProgram, layer: int, values: State) -> State:
        """One block: its outputs by name."""
        given = [self._value(name.format(layer=layer), values) for name in block.inputs]
        return dict(zip((name.format(layer=layer) for name in block.outputs), block.module(*given), strict=True))

    def _value(self, name: str, values: State) -> Tensor:
        place, _, rest = name.partition("/")
        if place == "weights":
            # Looked up at each use: tracing puts others in the place of the model's own.
            return weight_of(self.family.roots, self.paths[id(self.made.weights[rest])])
        return self.made.constants[rest] if place == "constants" else values[name]
