"""The state of a generation: what it has computed so far, which call of it runs, and which one a model is in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sparvar.errors import SessionError, message
from sparvar.runtime.columns import Columns
from sparvar.runtime.kv_compression.compressor import Compressor, compressor_of
from sparvar.runtime.reductions.reducer import Reducer, reducer_of
from sparvar.scale_plans import Plan, Schedule


class Observer(Protocol):
    """What sees dense attention of a generation; `sparvar.runtime.hooks.Hook` is one."""

    @property
    def scales(self) -> Collection[int]:
        """Scales at which every layer is observed."""
        ...

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Dense attention of ``site``, [B, H, N, D]; must not return one of its arguments."""
        ...


@dataclass
class Generation:
    """One generation of one model in one thread.

    Attributes:
        plan: what runs where.
        local: column lists of CSLA per scale, shared by layers and generations.
        compiled: gives the compiled forward of a site for a kind, a scale and, where caches are compressed, lengths.
        prefix_alone: the model runs the prefix in a call of its own, as scale 0 (HART); else it comes with scale 1.
        first: the first scale: 0 where the prefix has a call of its own, else 1.
        calls: the last scale that is finished, per layer.
        columns: selected source columns per (layer, number of columns).
        delta: output correction per layer, [B, H, N_S, D].
        ran: kind that really ran, per (scale, layer).
        owner: thread identifier.
        kinds: what the plan says per scale, from 0 (the prefix alone), and layer.
        sizes: tokens of the call of every scale, from 0.
        seconds: time spent in index mapping and selection, for the benchmark's overhead figure.
        observer: sees the dense sites of its scales; they run as kind ``observe``.
        reducer: what is left out beside columns, None where nothing is.
        caches: what is left of the KV caches, None where they stay whole.
    """

    plan: Plan
    local: dict[int, Columns]
    compiled: Callable[..., Callable[..., Any]]
    prefix_alone: bool = False
    observer: Observer | None = None
    columns: dict[tuple[int, int], Columns] = field(default_factory=dict)
    delta: dict[int, Tensor] = field(default_factory=dict)
    ran: dict[tuple[int, int], str] = field(default_factory=dict)
    owner: int = field(default_factory=threading.get_ident)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.first = 0 if self.prefix_alone else 1
        self.calls = [self.first - 1] * len(self.plan.layers)
        # Read at every call of every layer: tables, not the plan's checked accessors.
        scales = range(1, len(self.plan.schedule) + 1)
        layers = range(len(self.plan.layers))
        self.kinds = [["dense"] * len(self.plan.layers)]
        self.kinds += [[self.plan.kind(scale, layer) for layer in layers] for scale in scales]
        for scale in self.observer.scales if self.observer is not None else ():
            self.kinds[scale] = ["observe" if kind == "dense" else kind for kind in self.kinds[scale]]
        self.sizes = [self.tokens(scale) for scale in (0, *scales)]
        self.reducer: Reducer | None = reducer_of(self.plan)
        self.caches: Compressor | None = compressor_of(self.plan)

    def switch_plan(self, plan: Plan) -> None:
        """Go on with another plan, of the same schedule, sites and kinds, from the next scale on."""
        self.plan = plan
        if self.reducer is not None:
            self.reducer.plan = plan

    @property
    def finished(self) -> bool:
        return all(count == self.plan.drawn for count in self.calls)

    @property
    def started(self) -> bool:
        """Whether a layer has run."""
        return any(count >= self.first for count in self.calls)

    def tokens(self, scale: int) -> int:
        """Tokens of the call for ``scale``: the grid's, with the prefix where it comes along; 0 is the prefix alone."""
        if scale == 0:
            return self.plan.prefix
        along = self.plan.prefix if scale == 1 and not self.prefix_alone else 0
        return self.plan.tokens(scale) + along

    def site_tokens(self, scale: int, layer: int) -> int:
        """Tokens that a layer's attention sees at a scale: those that exist."""
        if self.reducer is None or scale == 0 or self.plan.span(scale, layer) is None:
            return self.tokens(scale)
        return self.reducer.tokens(scale, layer)

    def keys(self, scale: int) -> int:
        """Keys at ``scale``, prefix included."""
        return self.plan.keys(scale) if scale else self.plan.prefix

    def lengths(self, scale: int, layer: int) -> tuple[int, int]:
        """Keys that a layer attends to at a scale, and those that its cache needs room for from then on."""
        if self.caches is None or scale == 0:
            return self.keys(scale), self.keys(len(self.plan.schedule))
        return self.caches.lengths(scale, layer)

    def is_next_call(self, layer: int, tokens: int, index: object) -> bool:
        """Whether a call with ``tokens`` is plainly the next one; ``index`` is the 0-based scale it names, or None.

        False leaves the decision to those who look closer: the first call, a new generation, a call out of step.
        """
        done = self.calls[layer]
        if layer == 0:
            plain = done >= 1 and (index is None or index == done) and tokens != self.sizes[self.first]
        else:
            plain = self.calls[layer - 1] == done + 1
        if not plain or done + 1 > self.plan.drawn:
            return False
        return self.sizes[done + 1] == tokens or self.site_tokens(done + 1, layer) == tokens

    def scale_of(self, layer: int, tokens: int) -> int:
        """The 1-based scale that ``layer`` is about to run with ``tokens`` queries.

        Raises:
            SessionError: the schedule has another number of tokens there, or layers are out of step.
        """
        scale = self.calls[layer] + 1
        if scale > self.plan.drawn:
            skips = self.plan.drawn < self.plan.scales
            which = "the last that the plan draws" if skips else "the plan's last"
            raise SessionError(
                message(
                    f"layer {layer}",
                    f"start a new generation after scale {scale - 1}, {which}",
                    f"{tokens} more tokens",
                    "generate with the model's own method" if skips else "the plan is for another schedule",
                )
            )
        expected = self.sizes[scale]
        if tokens not in (expected, self.site_tokens(scale, layer)):
            h, w = self.plan.schedule[scale - 1]
            raise SessionError(
                message(
                    f"scale {scale} of {len(self.plan.schedule)}",
                    f"have {expected} tokens ({h}x{w}), as the plan's schedule says",
                    str(tokens),
                    "use a plan made for this schedule (resolution and aspect ratio)",
                )
            )
        if layer and self.calls[layer - 1] <= self.calls[layer]:
            raise SessionError(
                message(
                    f"layer {layer}",
                    f"run scale {scale} after layer {layer - 1} has",
                    "the layers in another order",
                    "the plan's sites must be listed in the order in which the model calls them",
                )
            )
        return scale

    def release(self) -> None:
        """Drop the tensors that it holds, once it has ended; what it ran stays known."""
        self.columns.clear()
        self.delta.clear()
        for part in (self.caches, self.reducer):
            if part is not None:
                part.release()


class SiteContext(NamedTuple):
    """A call of a site: its generation, 0-based layer and 1-based scale."""

    generation: Generation
    layer: int
    scale: int


class _Calling(threading.local):
    site: SiteContext | None = None


_calling = _Calling()


def enter(site: SiteContext) -> SiteContext | None:
    """Make ``site`` the one whose graph runs in this thread; returns the one before, for :func:`leave`."""
    previous, _calling.site = _calling.site, site
    return previous


def leave(previous: SiteContext | None) -> None:
    """Undo :func:`enter`, which returned ``previous``."""
    _calling.site = previous


def current() -> SiteContext:
    """The site whose graph is running in this thread.

    Raises:
        SessionError: a graph that was compiled for a site runs outside of one.
    """
    if _calling.site is None:
        raise SessionError(
            "site op: must run inside a generation of an attached model, got a call without one;"
            " call the model's own generation method"
        )
    return _calling.site


def active() -> bool:
    """Whether a site is running in this thread."""
    return _calling.site is not None


class Thread(threading.local):
    """What one thread does with a model.

    Attributes:
        declared: the schedule that the call of the generation method under way named.
        calls: calls of sites so far.
    """

    declared: Schedule | None = None
    calls = 0


class Generations:
    """Which generation an attached model is in: one at a time, in one thread, as its caches live on its modules.

    Attributes:
        under_way: the generation that has begun and has neither ended nor been given up, of whichever thread.
        last: the last one that ended.
        count: how many ended.
        here: of the thread that asks.
    """

    def __init__(self) -> None:
        self.under_way: Generation | None = None
        self.last: Generation | None = None
        self.count = 0
        self._lock = threading.Lock()
        self.here = Thread()

    @property
    def current(self) -> Generation | None:
        """The generation under way in this thread."""
        generation = self.under_way
        return generation if generation is not None and generation.owner == threading.get_ident() else None

    def begin(self, generation: Generation) -> None:
        """Let ``generation`` be the one under way; another one of this thread is given up.

        Raises:
            SessionError: one is under way in another thread that is alive.
        """
        with self._lock:
            other = self.under_way
            if other is not None and other.owner != threading.get_ident() and _alive(other.owner):
                raise SessionError(
                    "generation: this model is generating in another thread, and its KV cache lives on its modules;"
                    " give each thread its own copy of the model, or call sparvar.reset(model) if that generation"
                    " was given up"
                )
            self.under_way = generation

    def end(self, generation: Generation) -> None:
        """All scales of ``generation``, which this thread runs, are drawn."""
        with self._lock:
            self.count += 1
            self.last, self.under_way = generation, None
        generation.release()

    def give_up(self) -> None:
        """Forget the generation under way in this thread."""
        with self._lock:
            if self.current is not None:
                self.under_way = None

    def reset(self) -> None:
        """Forget the generation under way, of whichever thread."""
        with self._lock:
            self.under_way = None

    @contextmanager
    def method_call(self, schedule: Schedule | None) -> Iterator[Callable[[], bool]]:
        """Around a call of the generation method that named ``schedule``; yields whether it has called a site so far.

        Its generation ends with it, also after an exception, or where the model itself ends it early.
        """
        here = self.here
        outer, here.declared = here.declared, schedule
        before = here.calls
        try:
            yield lambda: here.calls != before
        finally:
            here.declared = outer
            self.give_up()


def _alive(identifier: int) -> bool:
    return any(thread.ident == identifier for thread in threading.enumerate())
