"""Wrap the sites of a model so that every call runs the compiled graph of its scale and kind."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, GraphBreakError, SessionError, SparvarError, SparvarWarning, message
from sparvar.models.call_arguments import (
    SCALE_ARGUMENT,
    SCHEDULE_ARGUMENTS,
    SUBSET_ARGUMENTS,
    bound_arguments,
    declared_schedule,
)
from sparvar.runtime.calls import tokens_of, variant
from sparvar.runtime.choices import Choices
from sparvar.runtime.columns import Columns
from sparvar.runtime.context import SiteContext, current, enter, leave
from sparvar.runtime.generation import Session
from sparvar.runtime.hooks import Hook, Hooks
from sparvar.runtime.sites import Around, Graphs, Site
from sparvar.runtime.wrappers import put_wrappers, remove_wrappers
from sparvar.scale_plans import Plan, PlanSet, Schedule, schedule_text


@dataclass
class Attachment:
    """The bond between a model and its plans.

    Attributes:
        plans: plans by schedule.
        sites: the modules that are wrapped, in order of execution.
        strict: raise where a planned site does not run as planned; otherwise warn.
        graphs_of: compiled graphs of a plan's schedule.
        unwrap: the error of ours inside one that the compiler raised.
        narrow: sites, graphs and blocks around them of the attention modules alone, for blocks that cannot be captured;
            None where the caller chose what is compiled.
        left_alone: site to reason, for calls that were not part of a generation or could not be.
        around: the block of every site, where a plan leaves tokens or rows out and the sites are not the blocks.
        shortened: runs a generation of fewer scales: attachment, plan, model, arguments of its generation method.
        choices: what generations decided whose plan adapts.
    """

    plans: PlanSet
    sites: list[Site]
    strict: bool
    graphs_of: Callable[[Plan], Graphs]
    unwrap: Callable[[BaseException], BaseException]
    narrow: Callable[[], tuple[list[Site], Callable[[Plan], Graphs], list[Around]]] | None = None
    left_alone: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    generations: int = 0
    last: Session | None = None
    around: list[Around] = field(default_factory=list)
    shortened: Callable[[Attachment, Plan, nn.Module, Mapping[str, Any]], Any] | None = None
    choices: Choices = field(default_factory=Choices)

    def __post_init__(self) -> None:
        self._threads = _PerThread()
        self._running: Session | None = None
        self._lock = threading.Lock()
        self._paused = 0
        self.hooks = Hooks()
        self._chosen: dict[Schedule | None, tuple[Plan, Graphs, dict[int, Columns]]] = {}
        if len(self.plans.plans) == 1:
            self.choose(None)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise CaptureError(
            message(
                "model",
                "be copied or saved without sparvar: wrappers in the copy would run the original's modules",
                "a model that is attached",
                "call sparvar.detach(model) first, or copy the model and attach to the copy",
            )
        )

    @property
    def current(self) -> Session | None:
        """The generation that is under way in this thread."""
        return self._threads.current

    @property
    def plan(self) -> Plan:
        """The plan of the last generation, the first of the set before there is one."""
        session = self._running or self.last
        return session.plan if session is not None else self.plans.plans[0]

    @property
    def reports(self) -> list[Any]:
        """What the passes did to every graph of the schedules used so far."""
        graphs = {id(graphs): graphs for _, graphs, _ in self._chosen.values()}
        return [report for each in graphs.values() for report in each.reports]

    def reset(self) -> None:
        """Forget a generation that was given up."""
        with self._lock:
            self._running = None
        self._threads.current = None

    @contextmanager
    def hooked(self, hook: Hook) -> Iterator[None]:
        """Let ``hook`` watch this model's generations until the end of the ``with`` block.

        Raises:
            SessionError: a hook that observes attention is installed already, and this one does, too.
        """
        if hook.scales and self.hooks.observer is not None:
            raise SessionError(
                message("hook", "be the only one that observes attention", "a second one", "install one at a time")
            )
        with self._lock:
            self.hooks = Hooks((*self.hooks.hooks, hook))
        try:
            yield
        finally:
            with self._lock:
                self.hooks = Hooks(tuple(each for each in self.hooks.hooks if each is not hook))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model run its own forwards, dense, until the end of the ``with`` block."""
        with self._lock:
            self._paused += 1
        try:
            yield
        finally:
            with self._lock:
                self._paused -= 1

    @property
    def enabled(self) -> bool:
        """Whether the plan runs: False inside `paused`."""
        return not self._paused

    def choose(self, schedule: Schedule | None) -> tuple[Plan, Graphs, dict[int, Columns]]:
        """Plan, graphs and CSLA lists for the schedule that a call named, or for the only one."""
        if schedule not in self._chosen:
            plan = self.plans.choose(schedule)
            known = next((entry for entry in self._chosen.values() if entry[0] == plan), None)
            self._chosen[schedule] = known or (plan, self.graphs_of(plan), {})
        return self._chosen[schedule]

    @contextmanager
    def generating(self, schedule: Schedule | None) -> Iterator[None]:
        """Around a call of the model's generation method, which named ``schedule``.

        Raises:
            CaptureError: it ended without one call of a site, in strict mode.
        """
        threads = self._threads
        outer, threads.declared = threads.declared, schedule
        before = threads.calls
        try:
            yield
            if not self._paused and threads.calls == before:
                self._complain(
                    message(
                        "generation",
                        f"call the plan's sites ({', '.join(site.wrapped for site in self.sites[:2])}, ...)",
                        "not one call of them",
                        "the model takes another path; see sparvar.explain(model)",
                    )
                )
        finally:
            # Also after an exception, and for a generation that the model itself ends early.
            threads.declared, threads.current = outer, None
            if self._running is not None and self._running.owner == threading.get_ident():
                self._running = None

    def _complain(self, text: str) -> None:
        if self.strict:
            raise CaptureError(text)
        warnings.warn(text, SparvarWarning, stacklevel=4)

    def _session(self, layer: int, tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Session:
        """The session of this thread; the first layer with the first scale's tokens starts a new one."""
        threads = self._threads
        session = threads.current
        named: dict[str, Any] = {}
        if layer == 0:
            if _names_schedule(self.sites[0]):
                named = bound_arguments(self.sites[0].signature, args, kwargs)
            if session is not None and session.started and self._restarts(session, tokens, named.get(SCALE_ARGUMENT)):
                session = None
            if session is None:
                session = self._begin(tokens, named, args, kwargs)
            index = named.get(SCALE_ARGUMENT)
            if isinstance(index, int) and index != session.calls[0]:
                raise SessionError(
                    message(
                        "generation",
                        f"go on with scale {session.calls[0] + 1} ({SCALE_ARGUMENT} {session.calls[0]})",
                        f"{SCALE_ARGUMENT} {index}",
                        "start generations at the first scale, or call sparvar.reset(model) first",
                    )
                )
        if session is None:
            raise self._no_session(tokens, self.choose(threads.declared)[0])
        return session

    @staticmethod
    def _restarts(session: Session, tokens: int, index: object) -> bool:
        if isinstance(index, int):
            return index == 0 and session.calls[0] > 0
        following = session.calls[0] + 1
        expected = session.tokens(following) if following <= len(session.plan.schedule) else None
        return tokens != expected and tokens == session.tokens(session.begin + 1)

    def _begin(self, tokens: int, named: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Session:
        schedule = declared_schedule(named)
        plan, graphs, local = self.choose(schedule if schedule is not None else self._threads.declared)
        alone = plan.prefix > 0 and tokens == plan.prefix
        if not alone and tokens != plan.tokens(1) + plan.prefix:
            raise self._no_session(tokens, plan)
        # By the model and not by this attachment: attached again, the model finds its graphs.
        graphs.check_recompile_limit((id(self.sites[0].module), *variant(args, kwargs)))
        with self._lock:
            other = self._running
            if other is not None and other.running and other.owner != threading.get_ident() and _alive(other.owner):
                raise SessionError(
                    "generation: this model is generating in another thread, and its KV cache lives on its modules;"
                    " give each thread its own copy of the model, or call sparvar.reset(model) if that generation"
                    " was given up"
                )
            session = self._running = Session.start(plan, local, graphs.compiled, alone, self.hooks.observer)
        self._threads.current = session
        return session

    @staticmethod
    def _no_session(tokens: int, plan: Plan) -> Exception:
        total = first = plan.tokens(1) + plan.prefix
        for scale in range(2, len(plan.schedule) + 1):
            total += plan.tokens(scale)
            if tokens == total:
                return _LeftAlone(f"one call held the tokens of scales 1 to {scale}: teacher forcing, no generation")
        return SessionError(
            message(
                "generation",
                f"start with the {first} tokens of scale 1 of the plan's schedule ({schedule_text(plan.schedule)})",
                f"{tokens} tokens",
                "use a plan made for this schedule, and start generations at the first scale",
            )
        )

    def call(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Run site ``layer`` (0-based) on the arguments of its module's forward."""
        site = self.sites[layer]
        if self._paused:
            return site.forward(site.module, *args, **kwargs)
        self._threads.calls += 1
        if torch.is_grad_enabled():
            self.left_alone[site.name] = "called with gradients enabled: training is left alone"
            return site.forward(site.module, *args, **kwargs)
        try:
            session, scale = self._locate(layer, args, kwargs)
        except _LeftAlone as reason:
            self.left_alone[site.name] = str(reason)
            return site.forward(site.module, *args, **kwargs)
        reducer = session.reducer if not self.around else None
        if reducer is not None:
            args, kwargs = reducer.before(site.module, layer, scale, args, kwargs)
        kind = session.kinds[scale][layer]
        previous = enter(SiteContext(session, layer, scale))
        try:
            run = self._run_hooked if self.hooks.graph_calls else self._run
            out = run(session, site, scale, kind, args, kwargs)
        except GraphBreakError as error:
            if self.narrow is None or site.wrapped == site.name:
                raise
            self._use_attention_alone(session, error)
            out = _NOT_RUN
        finally:
            leave(previous)
        if out is _NOT_RUN:
            return site.forward(site.module, *args, **kwargs)  # its attention is the site now
        if session.ran.get((scale, layer), "dense") != kind:
            self._differs(session, site, scale, layer, kind)
        if session.caches is not None:
            session.caches.after(site.module, layer, scale, args, kwargs)
        session.calls[layer] = scale
        if layer == len(self.sites) - 1 and session.finished:
            self._finish(session)
        if reducer is not None:
            out = reducer.after(layer, scale, out)
            if session.finished:
                reducer.release()
        return out

    def _finish(self, session: Session) -> None:
        self.generations += 1
        self.last = session
        session.columns.clear()
        if session.caches is not None:
            session.caches.release()
        session.delta.clear()
        self._threads.current = None

    def go_on(self, before: Plan, plan: Plan) -> None:
        """Let the generation under way in this thread, which runs ``before``, go on with ``plan``, or end with it.

        Raises:
            SessionError: there is none.
        """
        session = self._threads.current
        if session is None or session.plan is not before:
            must = "be under way in this thread when it decides how to go on"
            raise SessionError(message("generation", must, "none", "call the model's own generation method"))
        session.become(plan)
        if session.finished:
            self._finish(session)
            if session.reducer is not None:
                session.reducer.release()

    def call_around(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Run the block around site ``layer`` on the rows and tokens that exist."""
        block = self.around[layer]
        if self._paused or torch.is_grad_enabled():
            return block.forward(block.module, *args, **kwargs)
        try:
            session, scale = self._locate(layer, args, kwargs)
        except _LeftAlone:
            return block.forward(block.module, *args, **kwargs)
        reducer = session.reducer
        if reducer is None:
            return block.forward(block.module, *args, **kwargs)
        args, kwargs = reducer.before(block.module, layer, scale, args, kwargs)
        out = reducer.after(layer, scale, block.forward(block.module, *args, **kwargs))
        if session.finished:
            reducer.release()
        return out

    def _locate(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Session, int]:
        """The session and the scale of a call of site ``layer`` or of the block around it."""
        site = self.sites[layer]
        tokens = tokens_of(args, kwargs, site.name)
        current = self._threads.current
        if current is not None and current.follows(layer, tokens, kwargs.get(SCALE_ARGUMENT)):
            return current, current.calls[layer] + 1
        session = self._session(layer, tokens, args, kwargs)
        return session, self._scale(session, site, layer, tokens, args, kwargs)

    def _use_attention_alone(self, session: Session, error: GraphBreakError) -> None:
        """Compile attention modules where blocks cannot be captured; nothing of the failed call has run."""
        assert self.narrow is not None
        remove_wrappers(self)
        self.sites, self.graphs_of, self.around = self.narrow()
        self.narrow = None
        for schedule, (plan, _, local) in list(self._chosen.items()):
            self._chosen[schedule] = plan, self.graphs_of(plan), local
        session.compiled = next(graphs for plan, graphs, _ in self._chosen.values() if plan == session.plan).compiled
        put_wrappers(self)
        self.notes.append(f"attention is compiled without its block, which is not one graph: {error}")

    def _scale(
        self, session: Session, site: Site, layer: int, tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int:
        following = session.calls[layer] + 1
        if following == len(session.plan.schedule) and tokens < session.tokens(following):
            named = bound_arguments(site.signature, args, kwargs)
            if any(named.get(name) is not None for name in SUBSET_ARGUMENTS):
                reason = (
                    f"{tokens} of the {session.tokens(following)} tokens of scale {following} (MaskGIT): windows and"
                    " column maps need the whole grid, so the last scale ran dense"
                )
                if site.name not in self.left_alone:
                    warnings.warn(f"site {site.name}: {reason}", SparvarWarning, stacklevel=4)
                raise _LeftAlone(reason)
        return session.scale_of(layer, tokens)

    def _run(
        self, session: Session, site: Site, scale: int, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Outputs of modules that were compiled by the model's own code carry dynamic-shape marks; a
        # detached tensor does not.
        args = tuple([arg.detach() if isinstance(arg, Tensor) else arg for arg in args])
        if kwargs:
            kwargs = {name: arg.detach() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        try:
            if session.caches is None:
                return session.compiled(kind, scale)(site.module, *args, **kwargs)
            lengths = session.lengths(scale, current().layer)
            return session.compiled(kind, scale, lengths)(site.module, *args, **kwargs)
        except SparvarError:
            raise
        except Exception as error:
            cause = self.unwrap(error)
            if cause is error:
                raise
            raise cause from None

    def _run_hooked(
        self, session: Session, site: Site, scale: int, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        proceed = functools.partial(self._run, session, site, scale, kind, args, kwargs)
        return self.hooks.graph_call(current(), args, kwargs, proceed)

    def _differs(self, session: Session, site: Site, scale: int, layer: int, kind: str) -> None:
        ran = session.ran.get((scale, layer), "dense")
        text = message(f"site {site.name} at scale {scale}", f"run {kind}, as the plan says", ran)
        if self.strict:
            raise CaptureError(f"{text}; see sparvar.explain(model) for the reason")
        warnings.warn(text, SparvarWarning, stacklevel=3)


_NOT_RUN = object()


@functools.cache
def _names_schedule(site: Site) -> bool:
    names = site.signature.parameters if site.signature is not None else {}
    return any(name in names for name in (*SCHEDULE_ARGUMENTS, SCALE_ARGUMENT))


class _PerThread(threading.local):
    current: Session | None = None
    declared: Schedule | None = None
    calls = 0


class _LeftAlone(Exception):
    """The call is not part of a generation, or cannot be."""


def _alive(identifier: int) -> bool:
    return any(thread.ident == identifier for thread in threading.enumerate())
