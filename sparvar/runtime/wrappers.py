"""The forwards that lead calls of a model's modules through its attachment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from sparvar.runtime.sites import Around, Site


class Attached(Protocol):
    """What takes the calls, by its ``call`` and ``call_around``."""

    @property
    def sites(self) -> Sequence[Site]: ...
    @property
    def around(self) -> Sequence[Around]: ...


def put_wrappers(attachment: Attached) -> None:
    """Let calls of the sites' modules go through the attachment."""
    for layer, site in enumerate(attachment.sites):
        site.module.forward = _wrapper(attachment, "call", layer)
    for layer, block in enumerate(attachment.around):
        block.module.forward = _wrapper(attachment, "call_around", layer)


def remove_wrappers(attachment: Attached) -> None:
    """Give the sites' modules their own forwards back."""
    for module in (*(site.module for site in attachment.sites), *(block.module for block in attachment.around)):
        module.__dict__.pop("forward", None)


def _wrapper(attachment: Attached, method: str, layer: int) -> Callable[..., Any]:
    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        # Looked up at each call: benchmarks put a timer in the method's place.
        return getattr(attachment, method)(layer, *args, **kwargs)

    return forward


__all__ = ["put_wrappers", "remove_wrappers"]
