"""Least seconds of work on a named GPU: a roofline of published peaks, not a measurement.

Three roofs: matrix products at a stated share of the peak, bytes at the published bandwidth, warp instructions at four
a clock and multiprocessor; the highest counts, and launches are added. Bytes are those of every step, as in the column
"of peak, uncached" of the static table: what the L2 cache saves is not known without the GPU, so attention may well be
faster than predicted, dense and sparse alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from sparvar.errors import KernelError, OptionError, message
from sparvar.kernels.static.arithmetic import Work, element_name, require_triton
from sparvar.kernels.static.cases import KERNELS, StaticCase
from sparvar.kernels.static.compiled import static_compile, static_problems
from sparvar.kernels.static.targets import GPUS, Gpu

LAUNCH_SECONDS = 3.8e-6
"""From one short kernel to the next where the host is ahead: what NVIDIA's authors found for kernels that run 2.9 us
("Getting Started with CUDA Graphs", NVIDIA Technical Blog, 2019, on a V100). Added for every launch."""


@dataclass(frozen=True)
class GpuFit:
    """Whether the pinned kernels suit an architecture: what speaks against it, and the seconds that compiling took."""

    notes: tuple[str, ...]
    seconds: float


def find_gpu(name: str) -> Gpu:
    """Return the GPU of the static table that `name` means: its name, or the beginnings of some of its words.

    Case does not matter: "h100" is "H100 SXM". Raises `OptionError` where no GPU or several are meant.
    """
    words = name.casefold().split()
    for gpu in GPUS:
        if gpu.name.casefold().split() == words:
            return gpu

    def means(gpu: Gpu) -> bool:
        return all(any(own.startswith(word) for own in gpu.name.casefold().split()) for word in words)

    found = [gpu for gpu in GPUS if words and means(gpu)]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionError(
            message("target GPU", "mean one GPU", f"{name!r}, which means {', '.join(gpu.name for gpu in found)}")
        )
    raise OptionError(message("target GPU", f"be one of {', '.join(gpu.name for gpu in GPUS)}", repr(name)))


def issue_rate(gpu: Gpu) -> float:
    """Return the warp instructions a second that all multiprocessors issue, four a clock each.

    Out of the fp32 peak: two FLOPs a lane and clock, of 128 lanes a multiprocessor, 64 on sm_80.
    """
    lanes = 64 if gpu.target == "sm_80" else 128
    return gpu.tflops_32 * 1e12 / (2 * lanes) * 4


def roofline_seconds(gpu: Gpu, dtype: torch.dtype, work: Work) -> float:
    """Return the least seconds of `work` on a GPU, products in `dtype`. A prediction: nothing was run there.

    Raises `KernelError` on a dtype without kernels.
    """
    peak = (gpu.tflops_32 if element_name(dtype) == "fp32" else gpu.tflops_16) * 1e12
    roofs = (
        work.flops / (work.share * peak),
        work.bytes / (gpu.gigabytes * 1e9),
        work.instructions / issue_rate(gpu),
    )
    return max(roofs) + work.launches * LAUNCH_SECONDS


def gpu_fit(gpu: Gpu, dtype: torch.dtype, head_dim: int) -> GpuFit:
    """Compile the attention kernels for a GPU that need not be there, once per process, and say what speaks against it.

    Raises `KernelError` where a kernel does not compile or could not be launched there, and where Triton is missing.
    """
    require_triton()
    return _fit(gpu.target, element_name(dtype), head_dim)


@lru_cache(maxsize=32)
def _fit(target: str, dtype: str, head_dim: int) -> GpuFit:
    started = time.perf_counter()
    notes = []
    for kernel in KERNELS:
        case = StaticCase(kernel, "pinned", target, dtype, head_dim)
        facts = static_compile(case)
        problems = "; ".join(static_problems(case, facts))
        if facts.shared > facts.shared_limit:
            raise KernelError(message(case.name, f"fit {target}", problems))
        if problems:
            notes.append(f"{case.name}: {problems}")
    return GpuFit(tuple(notes), time.perf_counter() - started)
