"""What identifies a model for a plan: names, shapes and types of its parameters, never their values."""

from __future__ import annotations

import hashlib

from torch import nn


def fingerprint(model: nn.Module) -> str:
    """``sha256:`` of names, shapes and dtypes of the parameters and the classes of the modules."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__name__}\n".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
    return f"sha256:{digest.hexdigest()}"
