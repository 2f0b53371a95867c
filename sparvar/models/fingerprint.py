"""What identifies a model for a plan: names, shapes and types of its parameters, never their values."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_LOADED = (torch.float32, torch.bfloat16, torch.float16)


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """``sha256:`` of names, shapes and dtypes of the parameters and the classes of the modules.

    With ``dtype`` parameters of 16 and 32 bits count as if they were of that type: checkpoints are loaded in several,
    and norms of HART change theirs while they run.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__name__}\n".encode())
    for name, parameter in model.named_parameters():
        kind = dtype if dtype is not None and parameter.dtype in _LOADED else parameter.dtype
        digest.update(f"{name} {tuple(parameter.shape)} {kind}\n".encode())
    return f"sha256:{digest.hexdigest()}"
