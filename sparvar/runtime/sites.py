"""What is wrapped: self-attentions, the blocks around them, and the graphs that run in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


@dataclass(frozen=True)
class Site:
    """One self-attention of the model.

    Attributes:
        name: qualified name of the attention module.
        module: what is compiled: the attention, or the block around it.
        wrapped: qualified name of ``module``.
        forward: the module's own forward, unbound.
        signature: of the module's forward, bound, or None.
    """

    name: str
    module: nn.Module
    wrapped: str
    forward: Callable[..., Any]
    signature: inspect.Signature | None = None


@dataclass(frozen=True)
class Around:
    """A block that is reduced around the site inside it, where the site is the attention alone.

    Attributes:
        module: the block.
        forward: its own forward, unbound.
        signature: of its forward, bound, or None.
    """

    module: nn.Module
    forward: Callable[..., Any]
    signature: inspect.Signature | None = None


class Graphs(Protocol):
    """Compiled forwards of one class of site for one schedule; made by the backend, which alone knows how."""

    def compiled(self, kind: str, scale: int, lengths: tuple[int, int] | None = None) -> Callable[..., Any]:
        """The compiled forward of a kind at a scale; ``lengths`` of a compressed cache, see `Session.lengths`."""
        ...

    @property
    def reports(self) -> Sequence[Any]: ...

    def check_recompile_limit(self, variant: object) -> None:
        """Raise before a run whose graphs would not all be kept."""
