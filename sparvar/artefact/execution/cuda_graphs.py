"""Generations as CUDA graphs: one per scale, captured once, replayed with new inputs and noise.

A generation launches some thousands of kernels, most of them at scales so small that launching takes longer than
running. A replayed graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from sparvar.artefact.execution.executor import Call, Chain, Run
from sparvar.artefact.manifest.schema import TensorSpec
from sparvar.errors import ArtefactError, message

GIVEN = ("inputs/", "noise/")


class Graphs:
    """The graphs of one session. Not to be used by two threads at once.

    Values that a caller gives, inputs and noise, have tensors of their own, which the graphs read at every replay:
    a run copies into them. Everything else lies in one pool of memory that the graphs share; they are captured and
    replayed in the same order, so that what one frees the next may use.

    Args:
        chain: of the artefact.
        programs: by name; they must not wait for one another or query events, as one thread's runners.
        values: what outlives a generation: weights, constants and the session's buffers, by name.
        given: dtype and shape of every input and noise.
        scale_of: the scale of a program, None before the first and after the last.
        device: a CUDA device.
    """

    def __init__(
        self,
        chain: Chain,
        programs: Mapping[str, Run],
        values: Mapping[str, Any],
        given: Mapping[str, TensorSpec],
        scale_of: Callable[[str], int | None],
        device: Any,
    ) -> None:
        import torch

        self._torch, self._device = torch, device
        self._chain, self._programs = chain, programs
        self._given = {
            name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
            for name, spec in given.items()
            if name in chain.slots
        }
        self._values = {**values, **self._given}
        self._stream = torch.cuda.Stream(device)
        self._segments = [list(run) for _, run in groupby(chain.calls, key=lambda call: scale_of(call.program))]
        self._graphs: list[tuple[Any, tuple[str, ...]]] = []
        self._image: Any = None

    def capture(self, values: Mapping[str, Any], noise: Callable[[str], Any]) -> None:
        """Capture all graphs after one run of the programs as they are, which sets up what they set up once.

        Raises:
            ArtefactError: a program does something that a graph cannot hold.
        """
        torch = self._torch
        for name, value in values.items():
            if name in self._given:
                self._given[name].copy_(value)
        for name in self._given:
            if name.startswith("noise/"):
                self._given[name].copy_(noise(name))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._chain.run(self._programs, self._chain.table(self._values), _nothing)
            self._stream.synchronize()
            table, pool = self._chain.table(self._values), torch.cuda.graph_pool_handle()
            for calls in self._segments:
                graph = torch.cuda.CUDAGraph()
                try:
                    with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                        self._chain.run_calls(calls, self._programs, table, _nothing)
                except RuntimeError as error:
                    scale = ", ".join(dict.fromkeys(call.program for call in calls))
                    raise ArtefactError(
                        message(f"programs {scale}", "be captured as a CUDA graph", error, "load with graphs=False")
                    ) from error
                self._graphs.append((graph, self._needs(calls)))
            self._image = table[self._chain.slots["image"]]

    def _needs(self, calls: Sequence[Call]) -> tuple[str, ...]:
        """Noise that these calls read, in order."""
        names = self._chain.names
        read = dict.fromkeys(names[slot] for call in calls for slot in call.inputs)
        return tuple(name for name in read if name.startswith("noise/"))

    def run(self, values: Mapping[str, Any], noise: Callable[[str], Any]) -> Any:
        """Replay: a new tensor with the image. Noise is drawn while the scale before is running."""
        torch = self._torch
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            for name, value in values.items():
                if name in self._given:
                    self._given[name].copy_(value)
            for graph, needs in self._graphs:
                for name in needs:
                    self._given[name].copy_(noise(name))
                graph.replay()
            image = self._image.clone()
        outer.wait_stream(self._stream)
        image.record_stream(outer)
        return image


def _nothing(name: str) -> Any:
    raise ArtefactError(message(name, "be a value that there is when a graph is captured", "none"))
