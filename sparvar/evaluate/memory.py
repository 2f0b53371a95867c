"""Peak memory of one call.

On a CUDA device: the allocator's own peak above what was allocated before. On a CPU: the peak resident set above the
resident set before the call, after freed pages were given back to the system. Linux keeps that peak itself
(``VmHWM``, reset by writing 5 to ``/proc/self/clear_refs``); elsewhere, or where a container forbids the reset, a
thread samples the resident set.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sparvar.kernels import kv_held_bytes, trim_memory

_SAMPLE_SECONDS = 0.002
_STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """Bytes above the start at the worst moment, and how they were measured; None where the system does not say."""

    bytes: int | None = None
    method: str = ""


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(match.group(1)) * 1024


def _resident_by_ps() -> int:
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(listed.stdout) * 1024


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmHWM") - _status("VmRSS") < (1 << 20)
    except OSError:
        return False


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of the block under ``with``; the result is complete when it ends."""
    peak = Peak()
    trim_memory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        peak.method = "CUDA allocator, peak above the start"
    elif _reset_high_water():
        before = _status("VmRSS")
        yield peak
        peak.bytes = max(0, _status("VmHWM") - before)
        peak.method = "resident set, VmHWM above VmRSS at the start"
    else:
        resident = _sampler()
        if resident is None:
            yield peak
            peak.method = "not measured: this system tells no resident set"
            return
        with _sampling(resident) as worst:
            before = resident()
            yield peak
        peak.bytes = max(0, worst[0] - before)
        peak.method = "resident set, sampled"


def live_peak(run: Callable[[], object]) -> int:
    """Most bytes that tensors held at one moment of ``run`` on the CPU, as the allocator's peak is on a GPU.

    From the allocation events of torch's profiler, plus sparvar's cache buffers, which are mapped outside torch's
    allocator and all live at the end of a generation. Unlike the resident set this does not depend on the holes that
    earlier work, compilation above all, has left in the heap.
    """
    from torch.profiler import ProfilerActivity, profile

    trim_memory()  # caches in reference cycles of earlier generations would count as this one's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak + kv_held_bytes()


def _sampler() -> Callable[[], int] | None:
    for read in (lambda: _status("VmRSS"), _resident_by_ps):
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            read()
            return read
    return None


@contextlib.contextmanager
def _sampling(resident: Callable[[], int]) -> Iterator[list[int]]:
    worst, ended = [resident()], threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            worst[0] = max(worst[0], resident())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield worst
    finally:
        ended.set()
        thread.join()
