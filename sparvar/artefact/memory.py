"""How much memory a generation needs beside its weights and buffers, measured on the artefact itself."""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparvar import env, heap
from sparvar.artefact.execution.inputs import Request
from sparvar.errors import ArtefactError, message

if TYPE_CHECKING:
    from sparvar.artefact.session import Artefact

MARK = "program:"
Programs = Mapping[str, Callable[[list[Any]], Any]]
PROCESS = Path("/proc/self")
PEAK = "5"
"""What Linux takes, written to clear_refs, as the order to begin the peak of the resident set anew."""


def workspace(artefact: Artefact, request: Request, threads: int | None = None) -> tuple[int, dict[str, int]]:
    """Peak bytes of the tensors that a run allocates: of all of it, and while each program runs.

    What is made once, lists, the kernels' tables and CUDA graphs, is no part of it: a run before sees to that.

    Args:
        artefact: in the format ``aoti``; no other thread may use it meanwhile.
        request: what to run.
        threads: of torch while measuring: kernels have a workspace for each. As they are if None.
    """
    import torch

    programs, device = artefact.programs, artefact.engine.device
    try:
        with _threads(threads), artefact.session() as session:

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


def resident(artefact: Artefact, request: Request) -> tuple[int, dict[str, int]]:
    """Peak bytes by which the resident set grows during a run: of all of it, and while each program runs.

    What a runtime allocates without telling is in it. Nothing on systems other than Linux, whose kernel counts it.

    Args:
        artefact: no other thread may use it meanwhile, or allocate.
        request: what to run.
    """
    if not (PROCESS / "clear_refs").exists():
        return 0, {}
    programs = artefact.programs
    each: dict[str, int] = {}

    def wrap(name: str, run: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        def call(values: list[Any]) -> Any:
            (PROCESS / "clear_refs").write_text(PEAK)
            found = run(values)
            each[name] = max(each.get(name, 0), _resident("VmHWM") - start)
            return found

        return call

    try:
        with artefact.session() as session:
            session.run(request, _unheard)
            _trim()
            start = _resident("VmRSS")
            artefact.programs = {name: wrap(name, run) for name, run in programs.items()}
            session.run(request, _unheard)
    finally:
        artefact.programs = programs
    return max(each.values(), default=0), each


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Within it torch has so many threads."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


APART = """
import json, sys
from sparvar import heap
heap.return_freed()
import torch
from sparvar.artefact.session import load
from sparvar.artefact.memory import resident
torch.set_num_threads(int(sys.argv[2]))
artefact = load(sys.argv[1], format="aoti", trust=True)
print(json.dumps(resident(artefact, artefact.golden()[0])[0]))
"""


def resident_apart(artefact: Artefact, threads: int | None) -> int:
    """What `resident` finds of the golden run in a process of its own, which gives freed blocks back to the system.

    In a process that lives on the heap has holes, and what is put into them counts as growth. 0 where the system does
    not count, or its C library cannot give back.

    Args:
        artefact: in the format ``aoti``, for the CPU; its files were checked, and its code is trusted.
        threads: of torch, as it is if None.

    Raises:
        ArtefactError: the process failed.
    """
    import torch

    if not (PROCESS / "clear_refs").exists() or not heap.can_return():
        return 0
    command = [sys.executable, "-c", APART, str(artefact.folder.resolve()), str(threads or torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtefactError(message("memory of a run", "be measured in a process of its own", last))
    return int(done.stdout.split()[-1])


def _trim() -> None:
    """Give freed memory back to the system, so that using it again counts."""
    with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (PROCESS / "status").read_text())
    return int(found.group(1)) * 1024 if found else 0


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
