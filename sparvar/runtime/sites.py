"""What is wrapped: self-attentions, the blocks around them, and the graphs that run in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class Site:
    """A module that is wrapped for one self-attention of the model.

    Attributes:
        name: qualified name of the attention module.
        module: the attention, or the block around it.
        wrapped: qualified name of ``module``.
        forward: the module's own forward, unbound.
        signature: of the module's forward, bound, or None.
    """

    name: str
    module: nn.Module
    wrapped: str
    forward: Callable[..., Any]
    signature: inspect.Signature | None = None


class Graphs(Protocol):
    """Compiled forwards of one class of site for one schedule."""

    def compiled(self, kind: str, scale: int, lengths: tuple[int, int] | None = None) -> Callable[..., Any]:
        """The compiled forward of a kind at a scale; ``lengths`` of a compressed cache, see `Generation.lengths`."""
        ...

    @property
    def reports(self) -> Sequence[Any]:
        """What the passes did to every graph so far."""
        ...

    def check_recompile_limit(self, variant: object) -> None:
        """Raise `CaptureError` before a run whose graphs would not all be kept."""


class CompiledSites(Protocol):
    """The sites of a model and the graphs that run in their place; the compiler makes it, which alone knows how."""

    @property
    def sites(self) -> Sequence[Site]:
        """The modules that are wrapped, in order of execution."""
        ...

    @property
    def around(self) -> Sequence[Site]:
        """The block of every site, where a plan leaves tokens or rows out and the sites are not the blocks."""
        ...

    def graphs_of(self, plan: Plan) -> Graphs:
        """The graphs of a plan's schedule; nothing is compiled yet."""
        ...

    def fall_back_to_attention(self) -> CompiledSites | None:
        """The attention modules alone, for blocks that are not one graph; None where what to compile was said.

        Nothing of the model is wrapped at the time.
        """
        ...

    def unwrap_error(self, error: BaseException) -> BaseException:
        """The error of ours inside one that the compiler raised, or that one."""
        ...
