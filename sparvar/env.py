"""Environment variables. This is the only module that reads `os.environ`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

from sparvar.errors import OptionError, message

CpuKernels = Literal["auto", "native", "portable"]
GpuKernels = Literal["auto", "triton", "portable"]
GpuTune = Literal["pinned", "search"]

# name -> (default, meaning); shown by `sparvar doctor` and in the documentation
VARIABLES: dict[str, tuple[str, str]] = {
    "SPARVAR_CACHE_DIR": (
        "~/.cache/sparvar",
        "folder of compiled CPU kernels, unpacked artefacts, the list of artefacts made here; "
        "code is kept elsewhere where others may write it",
    ),
    "SPARVAR_CPU_KERNELS": (
        "auto",
        "auto: compiled kernels, or torch ops with a warning where none can be built; "
        "native: compiled kernels or an error; portable: torch ops only",
    ),
    "SPARVAR_GPU_KERNELS": (
        "auto",
        "auto: Triton kernels, or torch ops with a warning on GPUs that cannot run them; "
        "triton: Triton kernels or an error; portable: torch ops only",
    ),
    "SPARVAR_GPU_CHECKS": (
        "on",
        "on: the device asserts that column lists are valid, in a pass of its own; off: it does not, "
        "and bad lists give wrong results (never reads outside a tensor)",
    ),
    "SPARVAR_GPU_TUNE": (
        "pinned",
        "pinned: Triton kernels run in the configuration proven for every GPU; "
        "search: they time some more on first use, so that results may differ in the last bits between runs",
    ),
    "SPARVAR_CXX": ("", "C++ compiler of the CPU kernels; empty: CXX, then c++, g++, clang++"),
    "SPARVAR_UPSTREAM": ("", "folder with checkouts of the public models, for the upstream tests"),
}


def current(name: str) -> str:
    """Return the value of a variable of `VARIABLES`, or its default where it is unset or empty."""
    return os.environ.get(name) or VARIABLES[name][0]


def cache_dir() -> Path:
    """Return the folder of what is kept between runs.

    `SPARVAR_CACHE_DIR`, else `$XDG_CACHE_HOME/sparvar`, else `~/.cache/sparvar`.
    """
    if not os.environ.get("SPARVAR_CACHE_DIR") and (base := os.environ.get("XDG_CACHE_HOME")):
        return Path(base) / "sparvar"
    return Path(current("SPARVAR_CACHE_DIR")).expanduser()


def cpu_kernels() -> CpuKernels:
    """Return which CPU kernels are asked for. Raises `OptionError` on any other value."""
    value = current("SPARVAR_CPU_KERNELS")
    if value in ("auto", "native", "portable"):
        return cast(CpuKernels, value)
    raise OptionError(message("SPARVAR_CPU_KERNELS", "be auto, native or portable", repr(value)))


def gpu_kernels() -> GpuKernels:
    """Return which GPU kernels are asked for. Raises `OptionError` on any other value."""
    value = current("SPARVAR_GPU_KERNELS")
    if value in ("auto", "triton", "portable"):
        return cast(GpuKernels, value)
    raise OptionError(message("SPARVAR_GPU_KERNELS", "be auto, triton or portable", repr(value)))


def gpu_checks() -> bool:
    """Return whether GPU kernels check column lists. Raises `OptionError` on any other value."""
    value = current("SPARVAR_GPU_CHECKS")
    if value in ("on", "off"):
        return value == "on"
    raise OptionError(message("SPARVAR_GPU_CHECKS", "be on or off", repr(value)))


def gpu_tune() -> GpuTune:
    """Return how Triton kernels are configured. Raises `OptionError` on any other value."""
    value = current("SPARVAR_GPU_TUNE")
    if value in ("pinned", "search"):
        return cast(GpuTune, value)
    raise OptionError(message("SPARVAR_GPU_TUNE", "be pinned or search", repr(value)))


def compilers() -> list[str]:
    """Return the C++ compilers to try, in order. A compiler named by `SPARVAR_CXX` is the only one."""
    if named := current("SPARVAR_CXX"):
        return [named]
    return [*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++"]


def upstream() -> Path | None:
    """Return the folder with checkouts of the public models, or None."""
    value = current("SPARVAR_UPSTREAM")
    return Path(value).expanduser() if value else None


def quiet_profiler() -> None:
    """Keep torch's profiler from writing lines of its own to stderr, unless the user asked for some."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
