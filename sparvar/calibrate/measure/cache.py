"""What was timed on this machine, kept for the next calibration."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparvar import env
from sparvar.errors import OutputError
from sparvar.files import make_folder, write_whole
from sparvar.scale_plans import Plan
from sparvar.version import __version__


def device_text(device: torch.device) -> str:
    """The device as far as times depend on it."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}"
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def cache_file(name: str, base: Plan, device: torch.device, **more: Any) -> Path:
    """Where times of this device, these versions, and the model and schedule of a plan are kept; ``more`` as well."""
    key = {
        "device": device_text(device),
        "node": platform.node(),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, __version__],
        "model": base.model.model_dump(mode="json"),
        "schedule": base.schedule,
        **more,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return env.cache_dir() / f"{name}-{digest}.json"


def write_cache(path: Path, found: Mapping[str, Any]) -> None:
    """Write a file of the cache. Raises `OutputError`."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path.parent}: {error} (SPARVAR_CACHE_DIR)") from error
    write_whole(path, json.dumps(found, indent=1).encode())
