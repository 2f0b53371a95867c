"""The private name of torch that running an artefact depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def package_runner(path: Path, runners: int, device: torch.device) -> Callable[[list[Any]], list[Any]]:
    """Load the AOTInductor package at ``path`` and return what runs it on a list of tensors, which it empties.

    The loader that torch offers in Python also reads pickled extras of an archive; this one reads native code and
    JSON alone.

    Args:
        path: the package.
        runners: calls that may run at once.
        device: where its code runs.

    Raises:
        RuntimeError: torch cannot load it.
    """
    index = -1 if device.type == "cpu" else (device.index or 0)
    loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", runners == 1, runners, index)
    run: Callable[[list[Any]], list[Any]] = loader.boxed_run
    return run
