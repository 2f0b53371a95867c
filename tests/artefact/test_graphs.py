"""Generations as graphs, with CUDA played by a recorder: what is captured once reads what each run gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparvar.artefact.execution.cuda_graphs import Graphs
from sparvar.artefact.execution.executor import Chain
from sparvar.artefact.manifest.schema import Step, TensorSpec
from sparvar.errors import ArtefactError

Work = Callable[[], object]
SCALES = {"begin": None, "one": 1, "two": 2, "end": None}
STEPS = (
    Step("begin", ("inputs/cfg", "weights/w"), ("x",)),
    Step("one", ("x", "buffers/k", "noise/1"), ("x",), (0, 1)),
    Step("two", ("x", "buffers/k", "noise/2"), ("x",), (0,)),
    Step("end", ("x",), ("image",)),
)


class Recorder:
    """A graph: what programs launched while it was captured."""

    active: Recorder | None = None

    def __init__(self) -> None:
        self.work: list[Work] = []

    def replay(self) -> None:
        for launch in self.work:
            launch()


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)

    @contextlib.contextmanager
    def graph(made: Recorder, **_: Any) -> Iterator[None]:
        Recorder.active = made
        try:
            yield
        finally:
            Recorder.active = None

    names = {
        "Stream": lambda _: stream,
        "current_stream": lambda _: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "CUDAGraph": Recorder,
        "graph": graph,
        "graph_pool_handle": object,
    }
    for name, stand_in in names.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)


def program(function: Callable[..., torch.Tensor]) -> Callable[[list[Any]], list[Any]]:
    """Compute now, and again into the same memory when the graph that is being captured is replayed."""

    def run(values: list[Any]) -> list[Any]:
        out = function(*values)
        if Recorder.active is not None:
            Recorder.active.work.append(lambda: out.copy_(function(*values)))
        return [out]

    return run


def grow(x: torch.Tensor, buffer: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    buffer.add_(1)
    return x * 2 + noise


PROGRAMS = {
    "begin": program(lambda cfg, w: cfg * w),
    "one": program(grow),
    "two": program(grow),
    "end": program(lambda x: x + 1),
}


def noise_of(seed: int, asked: list[str] | None = None) -> Callable[[str], torch.Tensor]:
    def draw(name: str) -> torch.Tensor:
        if asked is not None:
            asked.append(name)
        return torch.full((2,), float(10 * seed + int(name[-1])))

    return draw


def given(cfg: float) -> dict[str, torch.Tensor]:
    return {"inputs/cfg": torch.tensor(cfg)}


def made() -> tuple[Graphs, Chain, dict[str, torch.Tensor]]:
    chain = Chain(STEPS, ("weights/", "constants/", "buffers/"))
    kept = {"weights/w": torch.tensor([1.0, 2.0]), "buffers/k": torch.zeros(1)}
    specs = {f"noise/{scale}": TensorSpec("float32", (2,)) for scale in (1, 2)}
    specs["inputs/cfg"] = TensorSpec("float32", ())
    specs["inputs/unused"] = TensorSpec("float32", ())
    return Graphs(chain, PROGRAMS, kept, specs, SCALES.__getitem__, torch.device("cpu")), chain, kept


def test_every_run_has_its_own_inputs_and_noise() -> None:
    graphs, chain, kept = made()
    graphs.capture(given(1.0), noise_of(1))
    images = [graphs.run(given(cfg), noise_of(seed)) for cfg, seed in ((3.0, 4), (5.0, 2))]
    for image, (cfg, seed) in zip(images, ((3.0, 4), (5.0, 2)), strict=True):
        wanted = chain.run(PROGRAMS, chain.table({**kept, **given(cfg)}), noise_of(seed))
        assert torch.equal(image, wanted)


def test_one_graph_per_scale_and_noise_where_it_is_used() -> None:
    graphs, _, _ = made()
    graphs.capture(given(1.0), noise_of(1))
    assert [len(graph.work) for graph, _ in graphs._graphs] == [1, 2, 1, 1]
    asked: list[str] = []
    graphs.run(given(1.0), noise_of(3, asked))
    assert asked == ["noise/1", "noise/2"]


def test_a_program_that_cannot_be_captured_is_named() -> None:
    graphs, _, _ = made()

    def refuses(values: list[Any]) -> list[Any]:
        if Recorder.active is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return [values[0]]

    graphs._programs = {**PROGRAMS, "two": refuses}
    with pytest.raises(ArtefactError, match=r"programs two: must be captured .*not permitted.*graphs=False"):
        graphs.capture(given(1.0), noise_of(1))
