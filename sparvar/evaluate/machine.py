"""Facts about the machine that belong beside every measurement."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sparvar import env
from sparvar.version import __version__

PACKAGES = ("torch", "triton", "numpy", "pydantic", "safetensors", "matplotlib", "pillow")


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_total() -> int | None:
    """Bytes of main memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def device_name(device: torch.device) -> str:
    """``cpu (name)`` or ``cuda:0 (name)``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return f"{device} ({name})"


def version_of(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """Path of the C++ compiler that the kernels and Inductor would use, or None."""
    return next((path for name in env.compilers() if (path := shutil.which(shlex.split(name)[0]))), None)


def machine() -> dict[str, Any]:
    """Machine and versions, as JSON values."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total / 2**30, 1) if (total := memory_total()) else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "os": platform.platform(),
        "python": platform.python_version(),
        "sparvar": __version__,
        **{name: version_of(name) for name in PACKAGES[:3]},
    }


def process_age() -> float | None:
    """Seconds since this process was started, interpreter and imports included; None where Linux's /proc is absent."""
    try:
        # Field 22 of stat, counted after the command's closing bracket (man 5 proc).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
