"""How much memory a generation needs beside its weights and buffers: measured on the artefact itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

MARK = "program:"


def marked(programs: Mapping[str, Callable[[list[Any]], Any]]) -> dict[str, Callable[[list[Any]], Any]]:
    """Programs that tell the profiler when they run."""

    def wrap(name: str, run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def call(values: list[Any]) -> Any:
            with record_function(f"{MARK}{name}"):
                return run(values)

        return call

    return {name: wrap(name, run) for name, run in programs.items()}


def peaks(run: Callable[[], Any]) -> tuple[int, dict[str, int]]:
    """Peak bytes of tensors allocated during ``run``, over all of it and while each `marked` program runs.

    The bytes are those of torch's CPU allocator, which programs compiled with AOTInductor use too; what was allocated
    before counts as nothing.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
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
