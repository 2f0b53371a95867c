"""What the tensors of a site's call say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparvar.errors import CaptureError, message


def variant(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
    """What makes Dynamo compile all graphs of a schedule again."""
    first = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor) and arg.ndim == 3)
    device = first.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return first.shape[0], first.dtype, str(first.device), autocast, torch.is_inference_mode_enabled()


def tokens_of(args: tuple[Any, ...], kwargs: dict[str, Any], site: str) -> int:
    """N of the first tensor [B, N, C]. Raises `CaptureError` where there is none; ``site`` is named in it."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor) and arg.ndim == 3:
            return arg.shape[1]
    raise CaptureError(
        message(f"site {site}", "be called with tokens [B, N, C] as its first tensor", "no tensor of 3 dimensions")
    )
