"""Wrap the sites of a model so that every call runs the compiled graph of its scale and kind."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, SessionError, SparvarError, SparvarWarning, message
from sparvar.kernels import kv_release
from sparvar.runtime.context import SiteContext, enter, leave
from sparvar.runtime.session import Columns, Session
from sparvar.scale_plans import Plan

KINDS = ("dense", "decide", "sparse")
_ATTRIBUTE = "_sparvar_attachment"


@dataclass(frozen=True)
class Site:
    """One self-attention of the model.

    Attributes:
        name: qualified name of the attention module.
        module: what is compiled: the attention, or the block around it.
        wrapped: qualified name of ``module``.
        forward: the module's own forward, unbound.
    """

    name: str
    module: nn.Module
    wrapped: str
    forward: Callable[..., Any]


@dataclass
class Attachment:
    """The bond between a model and a plan.

    ``compiled`` maps a kind to the compiled forward that all sites share; it is filled by the
    backend, which alone knows how to compile.
    """

    plan: Plan
    sites: list[Site]
    strict: bool
    compiled: dict[str, Callable[..., Any]]
    unwrap: Callable[[BaseException], BaseException]
    local: dict[int, Columns] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    generations: int = 0
    last: Session | None = None
    enabled: bool = True
    reports: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sessions = threading.local()
        self._running: Session | None = None
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget a generation that was given up."""
        with self._lock:
            self._running = None
        self._sessions.current = None

    def _session(self, layer: int, tokens: int) -> Session:
        """The session of this thread; a first layer with the first scale's tokens starts a new one."""
        session: Session | None = getattr(self._sessions, "current", None)
        first = self.plan.tokens(1) + self.plan.prefix
        starts = layer == 0 and tokens == first
        if starts and (session is None or session.calls[0] > 0):
            with self._lock:
                other = self._running
                if other is not None and other.running and other.owner != threading.get_ident() and _alive(other.owner):
                    raise SessionError(
                        "generation: this model is generating in another thread, and its KV cache lives on its modules;"
                        " give each thread its own copy of the model, or call sparvar.reset(model) if that generation"
                        " was given up"
                    )
                session = self._running = Session.start(self.plan, self.local)
            self._sessions.current = session
        if session is None:
            total = first
            for scale in range(2, len(self.plan.schedule) + 1):
                total += self.plan.tokens(scale)
                if tokens == total:
                    raise _LeftAlone(f"one call held the tokens of scales 1 to {scale}: teacher forcing, no generation")
            raise SessionError(
                message(
                    "generation",
                    f"start with the {first} tokens of scale 1 of the plan's schedule",
                    f"{tokens} tokens at layer {layer}",
                    "use a plan made for this schedule, and start generations at the first scale",
                )
            )
        return session

    def call(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Run site ``layer`` (0-based) on the arguments of its module's forward."""
        site = self.sites[layer]
        if not self.enabled:
            return site.forward(site.module, *args, **kwargs)
        if torch.is_grad_enabled():
            self.left_alone[site.name] = "called with gradients enabled: training is left alone"
            return site.forward(site.module, *args, **kwargs)
        tokens = _tokens(args, kwargs, site)
        try:
            session = self._session(layer, tokens)
        except _LeftAlone as reason:
            self.left_alone[site.name] = str(reason)
            return site.forward(site.module, *args, **kwargs)
        offset = self.plan.prefix if session.calls[layer] == 0 else 0
        scale = session.scale_of(layer, tokens - offset)
        kind = self.plan.kind(scale, layer)
        previous = enter(SiteContext(session, layer, scale))
        try:
            out = self._run(site, kind, args, kwargs)
        finally:
            leave(previous)
        self._check(session, site, scale, layer, kind)
        session.calls[layer] = scale
        if layer == len(self.sites) - 1 and session.finished:
            self.generations += 1
            self.last = session
            session.columns.clear()
            session.delta.clear()
            self._sessions.current = None
        return out

    def _run(self, site: Site, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Outputs of modules that were compiled by the model's own code carry dynamic-shape marks; a
        # detached tensor does not.
        args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        kwargs = {name: arg.detach() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        try:
            return self.compiled[kind](site.module, *args, **kwargs)
        except SparvarError:
            raise
        except Exception as error:
            cause = self.unwrap(error)
            if cause is error:
                raise
            raise cause from None

    def _check(self, session: Session, site: Site, scale: int, layer: int, kind: str) -> None:
        ran = session.ran.get((scale, layer), "dense")
        if ran == kind:
            return
        text = message(f"site {site.name} at scale {scale}", f"run {kind}, as the plan says", ran)
        if self.strict:
            raise CaptureError(f"{text}; see sparvar.explain(model) for the reason")
        warnings.warn(text, SparvarWarning, stacklevel=3)


class _LeftAlone(Exception):
    """The call is not part of a generation."""


def _alive(identifier: int) -> bool:
    return any(thread.ident == identifier for thread in threading.enumerate())


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any], site: Site) -> int:
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor) and arg.ndim == 3:
            return arg.shape[1]
    raise CaptureError(
        message(f"site {site.name}", "be called with tokens [B, N, C] as its first tensor", "no tensor of 3 dimensions")
    )


def attach(model: nn.Module, attachment: Attachment) -> None:
    """Put ``attachment`` on ``model``: its sites' forwards go through it from now on."""
    detach(model)
    for layer, site in enumerate(attachment.sites):
        site.module.forward = _wrapper(attachment, layer)
    object.__setattr__(model, _ATTRIBUTE, attachment)


def _wrapper(attachment: Attachment, layer: int) -> Callable[..., Any]:
    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        return attachment.call(layer, *args, **kwargs)

    return forward


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment of a model, or of the model inside a ``torch.compile`` wrapper, or None."""
    inner = getattr(model, "_orig_mod", model)
    return inner.__dict__.get(_ATTRIBUTE)


def detach(model: nn.Module) -> None:
    """Give the model its own forwards back, and memory kept for its next generation back to the system."""
    inner = getattr(model, "_orig_mod", model)
    attachment = inner.__dict__.pop(_ATTRIBUTE, None)
    if attachment is not None:
        for site in attachment.sites:
            site.module.__dict__.pop("forward", None)
        kv_release()
