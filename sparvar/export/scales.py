"""Whole scales as one program each, without custom ops or mutation: what ONNX and TensorRT take.

Weights are the programs' own parameters, so that a program is complete for whoever opens it alone, or inputs; the
formats store them once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from sparvar.export.programs import Builder, Generation, Recorded, Say, Step, flops_of
from sparvar.export.rewrite import BlockProgram, SiteMaker, block_program
from sparvar.export.sites import kind_of, local_constants
from sparvar.export.trace import Program, export_graph, weight_names
from sparvar.models import Family
from sparvar.scale_plans import Plan

Values = dict[str, Tensor]
Lookup = Callable[[str], Tensor]


class _Whole(nn.Module):
    """A function of named tensors that uses a family's modules; inputs and outputs by position."""

    def __init__(self, roots: Mapping[str, nn.Module], names: list[str], function: Callable[..., Values]) -> None:
        super().__init__()
        self.roots = nn.ModuleDict(dict(roots))
        self.names, self.function = names, function

    def weight(self, path: str) -> Tensor:
        """A parameter or buffer by its path below ``roots``: looked up at each use, because tracing replaces it."""
        return weight_of(self.roots, path)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(dict(zip(self.names, tensors, strict=True)), self.weight).values())


def weight_of(roots: Mapping[str, nn.Module] | nn.ModuleDict, path: str) -> Tensor:
    """A parameter or buffer by its path; the root's name leads."""
    root, *parts = path.split(".")
    found: Any = roots[root]
    for part in parts:
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found


def build_scales(
    family: Family,
    plan: Plan,
    recorded: Recorded,
    inputs: Values,
    site: SiteMaker,
    say: Say = lambda _: None,
    lifted: bool = False,
) -> Generation:
    """Trace ``begin``, one program per scale and ``decode``.

    Keys and values are the values ``k.LAYER`` and ``v.LAYER``, which grow from scale to scale; the last scale puts none
    out. Constants of the blocks, such as rotations, are baked into the programs. `Generation.weights` and
    `Generation.constants` hold them under the names that `sparvar.export.programs.build` gives them.

    Args:
        family: the model's.
        plan: what runs where.
        recorded: from `record_blocks` of the same plan's schedule.
        inputs: one tensor per input of the family.
        site: makes what stands for attention, from ops that the format has.
        lifted: weights are inputs ``weights/NAME`` of the programs instead of their parameters.
    """
    made = Generation(family, plan, image=recorded.image)
    maker = _Scales(made, recorded, site, lifted)
    with torch.no_grad(), family.functional():
        state = maker.begin(inputs)
        for scale in family.scales:
            say(f"tracing scale {scale} of {family.scales[-1]}")
            state = maker.scale(scale, state)
        maker.decode(state)
    return made


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


class _Scales:
    def __init__(self, made: Generation, recorded: Recorded, site: SiteMaker, lifted: bool) -> None:
        self.made, self.recorded, self.site, self.lifted = made, recorded, site, lifted
        self.family, self.plan = made.family, made.plan
        self.known = weight_names(made.family)
        # Names of the blocks' inputs, and their tensors, come from the maker of block programs.
        self.names = Builder(made, recorded, self.known, site)
        made.constants.update(local_constants(made.plan))
        single = f"{next(iter(made.family.roots))}." if len(made.family.roots) == 1 else ""
        self.paths = {tensor: f"{single}{name}" for tensor, name in self.known.items()}

    def _add(self, name: str, scale: int, kind: str, function: Callable[..., Values], given: Values) -> Values:
        """Trace a function of the values and weights that it reads; returns what it gives."""
        if self.lifted:
            return self.names.add(name, scale, kind, lambda values: function(values, self._found), given)
        seen = _Reads(given)
        out = function(seen, self._found)
        names = [each for each in given if each in seen.read]
        exported = export_graph(_Whole(self.family.roots, names, function), [given[each] for each in names])
        self._store(exported)
        self.made.programs[name] = Program(name, scale, kind, exported, names, list(out))
        self.made.steps.append(Step(name, tuple(names), tuple(out)))
        return out

    def _found(self, path: str) -> Tensor:
        """A weight of the model, or what tracing put in its place."""
        return weight_of(self.family.roots, path)

    def _store(self, exported: ExportedProgram) -> None:
        """Note the weights that a program reads, by their names in the artefact."""
        read = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
        for spec in exported.graph_signature.input_specs:
            if spec.arg.name in read and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                assert spec.target is not None
                tensor = weight_of(self.family.roots, spec.target.removeprefix("roots."))
                self.made.weights[self.names.weight_name(self.known[id(tensor)])] = tensor

    def begin(self, inputs: Values) -> Values:
        """The state before the first scale."""

        def begin(values: Values, _weight: Lookup) -> Values:
            return self.family.begin({name: values[f"inputs/{name}"] for name in inputs})

        return self._add("begin", 0, "begin", begin, {f"inputs/{name}": tensor for name, tensor in inputs.items()})

    def decode(self, state: Values) -> None:
        """The image."""
        self._add("decode", 0, "decode", lambda values, _: {"image": self.family.decode(values)}, state)

    def scale(self, scale: int, state: Values) -> Values:
        """All blocks and what follows them; returns the state of the next scale."""
        graph = self.recorded.of(scale)
        inputs = self.names.inputs_of(graph, scale)
        layers = range(self.family.layers)
        kinds = [kind_of(self.plan, scale, layer) for layer in layers]
        blocks = {
            kind: block_program(graph, kind, self.plan, inputs, self.site, functional=True)
            for kind in sorted(set(kinds))
        }
        noises = {
            each.name: torch.full(each.shape, 0.5, dtype=getattr(torch, each.dtype), device=self.family.device)
            for each in self.family.noise
            if each.scale == scale
        }

        def run(given: Values, weight: Lookup) -> Values:
            values = given if isinstance(given, _Reads) else _Reads(given)
            x, out = values["x"], Values()
            for layer, kind in zip(layers, kinds, strict=True):
                found = self._block(blocks[kind], layer, values.having(x), weight)
                x = found.pop("x")
                out.update(found)
                changed = self.family.between(layer, x, values.having(x), scale)
                x = x if changed is None else changed
            noise = {name: values[name] for name in noises}
            out.update(self.family.leave(scale, values.having(x), noise))
            return out

        out = self._add(f"scale{scale:02d}", scale, "+".join(sorted(set(kinds))), run, {**state, **noises})
        self._count(self.made.programs[f"scale{scale:02d}"], blocks, kinds)
        # What the next scale replaces goes; columns and corrections stay.
        return {name: tensor for name, tensor in {**state, **out}.items() if name != "x" or name in out}

    def _block(self, block: BlockProgram, layer: int, values: Values, weight: Lookup) -> Values:
        """One block: its outputs by name."""
        given = [self._value(name.format(layer=layer), values, weight) for name in block.inputs]
        return dict(zip((name.format(layer=layer) for name in block.outputs), block.module(*given), strict=True))

    def _value(self, name: str, values: Values, weight: Lookup) -> Tensor:
        place, _, rest = name.partition("/")
        if place == "weights":
            return weight(self.paths[id(self.names.made.weights[rest])])
        return self.names.made.constants[rest] if place == "constants" else values[name]

    def _count(self, program: Program, blocks: Mapping[str, BlockProgram], kinds: list[str]) -> None:
        """Multiplications and additions of the blocks, kept and if all were dense."""
        any_block = next(iter(blocks.values()))
        graph = self.recorded.of(program.scale)
        inputs = self.names.inputs_of(graph, program.scale)
        dense = blocks.get("dense") or block_program(graph, "dense", self.plan, inputs, self.site, functional=True)
        each = flops_of(dense.module, dense.examples, self.family.device)
        attention = self.names.attention(any_block)
        program.dense_flops = len(kinds) * each
        program.flops = sum(each - round(attention * (1 - self.names.kept(blocks[kind]))) for kind in kinds)
