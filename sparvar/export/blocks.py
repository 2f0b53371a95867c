"""One program per scale and kind of block, on buffers of keys and values: what AOTInductor compiles."""

from __future__ import annotations

from itertools import groupby

from sparvar.export.capture import Recorded
from sparvar.export.programs import Generation, Step, Tracer, empty_like, flops_of
from sparvar.export.rewrite import BlockProgram, SiteMaker, block_program
from sparvar.export.sites import native_site
from sparvar.export.trace import Program, export_graph
from sparvar.models import State
from sparvar.progress import Progress, Silent


def trace_blocks(recorded: Recorded, site: SiteMaker = native_site, progress: Progress | None = None) -> Generation:
    """Trace ``begin``, per scale a program for each kind of block and one for what follows, and ``decode``."""
    return _Blocks(recorded, site, progress or Silent()).traced()


class _Blocks(Tracer):
    def trace_scale(self, scale: int, state: State) -> State:
        self._trace_blocks(scale, state)
        noises = self.noise_examples(scale)

        def leave(values: State) -> State:
            noise = {name: tensor for name, tensor in values.items() if name in noises}
            rest = {name: tensor for name, tensor in values.items() if name not in noises}
            return self.family.leave(scale, rest, noise)

        return {**state, **self.add(f"scale{scale:02d}-leave", scale, "leave", leave, {**state, **noises})}

    def _trace_blocks(self, scale: int, state: State) -> None:
        graph, kinds = self.recorded.of(scale), self.kinds[scale]
        inputs = self.inputs_of(graph)
        dense = block_program(graph, "dense", self.plan, inputs)
        dense_flops = flops_of(dense.module, dense.examples, self.family.device)
        for kind, run in groupby(range(len(kinds)), key=kinds.__getitem__):
            name = f"scale{scale:02d}-{kind}"
            if name not in self.made.programs:
                block = dense if kind == "dense" else block_program(graph, kind, self.plan, inputs, self.site)
                self._add_block(name, block, dense_flops)
            self._chain(self.made.programs[name], list(run), scale, state)

    def _chain(self, program: Program, layers: list[int], scale: int, state: State) -> None:
        """Steps of consecutive layers, cut where the model changes x between two blocks."""

        def step(part: list[int]) -> None:
            if part:
                self.made.steps.append(Step(program.name, tuple(program.inputs), tuple(program.outputs), tuple(part)))

        waiting: list[int] = []
        for layer in layers:
            waiting.append(layer)
            if self.family.between(layer, state["x"], state, scale) is not None:
                step(waiting)
                waiting = []
                self._trace_between(layer, scale, state)
        step(waiting)

    def _trace_between(self, layer: int, scale: int, state: State) -> None:
        def between(values: State) -> State:
            changed = self.family.between(layer, values["x"], values, scale)
            assert changed is not None
            return {"x": changed}

        self.add(f"scale{scale:02d}-after{layer:02d}", scale, "between", between, state)

    def _add_block(self, name: str, block: BlockProgram, dense_flops: int) -> None:
        examples = [empty_like(each, self.family.device) for each in block.examples]
        exported = export_graph(block.module, examples)
        self.made.programs[name] = Program(
            name,
            block.scale,
            block.kind,
            exported,
            block.inputs,
            block.outputs,
            flops=self.block_flops(block, dense_flops),
            dense_flops=dense_flops,
        )
        for layer in range(self.family.layers):
            for each, tensor in block.buffers.items():
                self.made.buffers[each.format(layer=layer)] = tensor
