"""Which GPU implementation serves a device: Triton kernels, or torch ops where they cannot run."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch

from sparvar import env
from sparvar.errors import KernelError, SparvarWarning, message

OLDEST_CAPABILITY = (8, 0)  # Ampere: bf16 tensor cores and asynchronous copies
REMEDY = "install triton and use an Ampere or newer GPU, or set SPARVAR_GPU_KERNELS=portable"


@dataclass(frozen=True)
class GpuStatus:
    """What `sparvar doctor` shows of one GPU: its name, whether Triton kernels run there, and why not."""

    name: str
    usable: bool
    reason: str


@lru_cache(maxsize=16)
def _obstacle(index: int) -> str:
    """Return why Triton kernels cannot run on CUDA device `index`, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.version.hip is not None:
        return ""
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST_CAPABILITY[0]}.0"
    return ""


@lru_cache(maxsize=4)
def _warn(reason: str) -> None:
    warnings.warn(f"GPU ops run as torch ops, many times slower: {reason}; {REMEDY}", SparvarWarning, stacklevel=4)


def use_triton(device: torch.device) -> bool:
    """Return whether ops on `device` run Triton kernels. With `auto`, a GPU that cannot is warned about once.

    Raises `KernelError` where SPARVAR_GPU_KERNELS=triton and they cannot run.
    """
    if device.type != "cuda":
        return False
    asked = env.gpu_kernels()
    if asked == "portable":
        return False
    reason = _obstacle(torch.cuda.current_device() if device.index is None else device.index)
    if not reason:
        return True
    if asked == "triton":
        raise KernelError(message("SPARVAR_GPU_KERNELS=triton", "find a GPU for Triton kernels", reason, REMEDY))
    _warn(reason)
    return False


def gpu_status() -> list[GpuStatus]:
    """Return one entry per visible GPU, none where there is no GPU. Never warns.

    Raises `OptionError` on a wrong SPARVAR_GPU_KERNELS where there is a GPU.
    """
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        reason = "SPARVAR_GPU_KERNELS=portable" if env.gpu_kernels() == "portable" else _obstacle(index)
        found.append(GpuStatus(torch.cuda.get_device_name(index), not reason, reason))
    return found


def triton_kernels(op: str, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """Return the module of the op's Triton kernels where they serve `device` and `dtype`, else None.

    Imported here, as the package must be usable where Triton is not installed. Triton has no float64 tensor cores.
    """
    if dtype == torch.float64 or not use_triton(device):
        return None
    return importlib.import_module(f"sparvar.kernels.{op}.gpu")
