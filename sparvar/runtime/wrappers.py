"""The forwards that lead calls of a model's modules through its attachment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from sparvar.runtime.hooks import Hooks
from sparvar.runtime.sites import Around, Site


class Attached(Protocol):
    """What takes the calls."""

    @property
    def sites(self) -> Sequence[Site]: ...
    @property
    def around(self) -> Sequence[Around]: ...
    @property
    def hooks(self) -> Hooks: ...
    def call(self, layer: int, *args: Any, **kwargs: Any) -> Any: ...
    def call_around(self, layer: int, *args: Any, **kwargs: Any) -> Any: ...


def put_wrappers(attachment: Attached) -> None:
    """Let calls of the sites' modules go through the attachment."""
    for layer, site in enumerate(attachment.sites):
        site.module.forward = _site_forward(attachment, layer)
    for layer, block in enumerate(attachment.around):
        block.module.forward = _around_forward(attachment, layer)


def remove_wrappers(attachment: Attached) -> None:
    """Give the sites' modules their own forwards back."""
    for module in (*(site.module for site in attachment.sites), *(block.module for block in attachment.around)):
        module.__dict__.pop("forward", None)


def _site_forward(attachment: Attached, layer: int) -> Callable[..., Any]:
    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        hooks = attachment.hooks
        if hooks.site_calls:
            return hooks.site_call(layer, functools.partial(attachment.call, layer, *args, **kwargs))
        return attachment.call(layer, *args, **kwargs)

    return forward


def _around_forward(attachment: Attached, layer: int) -> Callable[..., Any]:
    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        return attachment.call_around(layer, *args, **kwargs)

    return forward


__all__ = ["put_wrappers", "remove_wrappers"]
