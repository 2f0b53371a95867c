"""How much memory a generation needs beside its weights and buffers, measured on the artefact itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sparvar import env
from sparvar.artefact.inputs import Request

if TYPE_CHECKING:
    from sparvar.artefact.load import Artefact

MARK = "program:"
Programs = Mapping[str, Callable[[list[Any]], Any]]


def workspace(artefact: Artefact, request: Request, threads: int | None = None) -> tuple[int, dict[str, int]]:
    """Peak bytes of the tensors that a run allocates: of all of it, and while each program runs.

    What is made once, lists, the kernels' tables and CUDA graphs, is no part of it: a run before sees to that.

    Args:
        artefact: in the format ``aoti``; no other thread may use it meanwhile.
        request: what to run.
        threads: of torch while measuring: kernels have a workspace for each. As they are if None.
    """
    import torch

    before, programs = torch.get_num_threads(), artefact.programs
    device = artefact.engine.device
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with artefact.session() as session:

            def run() -> None:
                session.run(request, _unheard)

            run()
            if device.type == "cuda":
                each: dict[str, int] = {}
                start = torch.cuda.memory_allocated(device)
                artefact.programs = _watched(programs, each, device, start)
                run()
                return max(each.values(), default=0), each
            artefact.programs = _marked(programs)
            return _peaks(run)
    finally:
        artefact.programs = programs
        torch.set_num_threads(before)


def _unheard(program: str, seconds: float) -> None:
    """A timer: with one, programs are called one by one."""


def _watched(programs: Programs, each: dict[str, int], device: Any, start: int) -> dict[str, Any]:
    """Programs that note the peak of CUDA's allocator, less what it held at the start."""
    import torch

    def wrap(name: str, run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def call(values: list[Any]) -> Any:
            torch.cuda.reset_peak_memory_stats(device)
            found = run(values)
            each[name] = max(each.get(name, 0), torch.cuda.max_memory_allocated(device) - start)
            return found

        return call

    return {name: wrap(name, run) for name, run in programs.items()}


def _marked(programs: Programs) -> dict[str, Any]:
    """Programs that tell the profiler when they run."""
    from torch.profiler import record_function

    def wrap(name: str, run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def call(values: list[Any]) -> Any:
            with record_function(f"{MARK}{name}"):
                return run(values)

        return call

    return {name: wrap(name, run) for name, run in programs.items()}


def _peaks(run: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """Peak bytes of tensors allocated during ``run``, over all of it and while each marked program runs.

    The bytes are those of torch's CPU allocator, which programs compiled with AOTInductor use too; what was allocated
    before counts as nothing.
    """
    from torch.profiler import ProfilerActivity, profile

    env.quiet_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = found.profiler.kineto_results.events()
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name().removeprefix(MARK))
        for event in events
        if event.name().startswith(MARK)
    ]
    spans.sort()
    steps = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = span = 0
    each: dict[str, int] = {}
    for moment, size in steps:
        held += size
        most = max(most, held)
        while span < len(spans) and spans[span][1] < moment:
            span += 1
        if span < len(spans) and spans[span][0] <= moment:
            name = spans[span][2]
            each[name] = max(each.get(name, 0), held)
    return most, each
