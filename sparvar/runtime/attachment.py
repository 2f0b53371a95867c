"""The bond between a model and its plans: its wrapped modules run the compiled graph of their scale and kind."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from sparvar.errors import CaptureError, GraphBreakError, SessionError, SparvarError, SparvarWarning, message
from sparvar.runtime.choices import Choices
from sparvar.runtime.generation import Generation, Generations, SiteContext, enter, leave
from sparvar.runtime.hooks import Hook, Hooks
from sparvar.runtime.router import LeftAlone, Prepared, Router
from sparvar.runtime.sites import CompiledSites, Site
from sparvar.scale_plans import Plan, PlanSet, Schedule


class Attachment:
    """The bond between a model and its plans; `sparvar.runtime.attaching.attach` puts it on the model.

    Args:
        plans: plans by schedule.
        compiled: the modules that are wrapped, and the graphs that run in their place.
        strict: raise where a planned site does not run as planned; otherwise warn.

    Attributes:
        sites, around: what is wrapped; others after a fall back from blocks to the attention in them.
        hooks: what watches, see `hooked`.
        left_alone: site to reason, for calls that were not part of a generation or could not be.
        notes: what a user should know, for `explain`.
        choices: what generations decided whose plan adapts.
    """

    def __init__(self, plans: PlanSet, compiled: CompiledSites, strict: bool) -> None:
        self.plans, self.strict = plans, strict
        self.hooks, self.choices = Hooks(), Choices()
        self.left_alone: dict[str, str] = {}
        self.notes: list[str] = []
        self._paused = 0
        self._lock = threading.Lock()
        self._generations = Generations()
        self._here = self._generations.here
        self._router = Router(plans, compiled, self._generations, self.hooks)
        self._use(compiled)

    def _use(self, compiled: CompiledSites) -> None:
        self._compiled = compiled
        self.sites, self.around = compiled.sites, compiled.around
        self._last_layer = len(self.sites) - 1

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
    def current(self) -> Generation | None:
        """The generation that is under way in this thread."""
        return self._generations.current

    @property
    def last(self) -> Generation | None:
        """The last generation that ended."""
        return self._generations.last

    @property
    def generations(self) -> int:
        """How many generations have ended."""
        return self._generations.count

    @property
    def plan(self) -> Plan:
        """The plan of the last generation, the first of the set before there is one."""
        generation = self._generations.under_way or self.last
        return generation.plan if generation is not None else self.plans.plans[0]

    @property
    def reports(self) -> list[Any]:
        """What the passes did to every graph of the schedules used so far."""
        graphs = {id(entry.graphs): entry.graphs for entry in self._router.prepared.values()}
        return [report for each in graphs.values() for report in each.reports]

    @property
    def enabled(self) -> bool:
        """Whether the plan runs: False inside `paused`."""
        return not self._paused

    def choose(self, schedule: Schedule | None) -> Prepared:
        """The plan for the schedule that a call named, or the only one, and what it runs on."""
        return self._router.choose(schedule)

    def reset(self) -> None:
        """Forget a generation that was given up."""
        self._generations.reset()

    def hooked(self, hook: Hook) -> AbstractContextManager[None]:
        """Let ``hook`` watch this model's generations until the end of the ``with`` block.

        Raises:
            SessionError: it observes attention, and another hook does already.
        """
        return self.hooks.install(hook)

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

    @contextmanager
    def generating(self, schedule: Schedule | None) -> Iterator[None]:
        """Around a call of the model's generation method, which named ``schedule``.

        Raises:
            CaptureError: it ended without one call of a site, in strict mode.
        """
        with self._generations.method_call(schedule) as called:
            yield
            if not called() and not self._paused:
                self._complain(
                    message(
                        "generation",
                        f"call the plan's sites ({', '.join(site.wrapped for site in self.sites[:2])}, ...)",
                        "not one call of them",
                        "the model takes another path; see sparvar.explain(model)",
                    )
                )

    def switch_plan(self, before: Plan, plan: Plan) -> None:
        """Let the generation under way in this thread, which runs ``before``, go on with ``plan``, or end with it.

        Raises:
            SessionError: there is none.
        """
        generation = self.current
        if generation is None or generation.plan is not before:
            must = "be under way in this thread when it decides how to go on"
            raise SessionError(message("generation", must, "none", "call the model's own generation method"))
        generation.switch_plan(plan)
        if generation.finished:
            self._generations.end(generation)

    def wrap(self) -> None:
        """Let calls of the sites, and of the blocks around them, go through here."""
        for layer, site in enumerate(self.sites):
            site.module.forward = self._forward(layer, self.call, self.hooks)
        for layer, block in enumerate(self.around):
            block.module.forward = self._forward(layer, self.call_around, Hooks())

    def unwrap(self) -> None:
        """Give the modules their own forwards back."""
        for site in (*self.sites, *self.around):
            site.module.__dict__.pop("forward", None)

    @staticmethod
    def _forward(layer: int, call: Callable[..., Any], hooks: Hooks) -> Callable[..., Any]:
        @torch.compiler.disable
        def forward(*args: Any, **kwargs: Any) -> Any:
            if hooks.site_calls:
                return hooks.site_call(layer, functools.partial(call, layer, *args, **kwargs))
            return call(layer, *args, **kwargs)

        return forward

    def call(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Run site ``layer`` (0-based) on the arguments of its module's forward."""
        site = self.sites[layer]
        if self._paused:
            return site.forward(site.module, *args, **kwargs)
        self._here.calls += 1
        if torch.is_grad_enabled():
            self.left_alone[site.name] = "called with gradients enabled: training is left alone"
            return site.forward(site.module, *args, **kwargs)
        try:
            generation, scale = self._router.locate(site, layer, args, kwargs)
        except LeftAlone as reason:
            self._leave_alone(site, reason)
            return site.forward(site.module, *args, **kwargs)
        reducer = None if self.around else generation.reducer
        given_args, given_kwargs = args, kwargs
        if reducer is not None:
            args, kwargs = reducer.reduce_call(site.module, layer, scale, args, kwargs)
        kind = generation.kinds[scale][layer]
        context = SiteContext(generation, layer, scale)
        previous = enter(context)
        try:
            run = self._run_hooked if self.hooks.graph_calls else self._run
            out = run(context, site, kind, args, kwargs)
        except BaseException as error:
            if not isinstance(error, GraphBreakError) or not self._fall_back_to_attention(site, error):
                if not generation.started:
                    self._generations.give_up()
                raise
            out = _NOT_RUN
        finally:
            leave(previous)
        if out is _NOT_RUN:
            return site.module.forward(*given_args, **given_kwargs)  # the site is its attention now
        ran = generation.ran.get((scale, layer), "dense")
        if ran != kind:
            self._differs(site, scale, kind, ran)
        if generation.caches is not None:
            generation.caches.compact_caches(site.module, layer, scale, args, kwargs)
        generation.calls[layer] = scale
        if reducer is not None:
            out = reducer.restore_output(layer, scale, out)
        # A generation that is reduced around its sites ends behind the last block.
        if layer == self._last_layer and reducer is generation.reducer and generation.finished:
            self._generations.end(generation)
        return out

    def call_around(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Run the block around site ``layer`` on the rows and tokens that exist."""
        block = self.around[layer]
        if self._paused or torch.is_grad_enabled():
            return block.forward(block.module, *args, **kwargs)
        try:
            generation, scale = self._router.locate(block, layer, args, kwargs)
        except LeftAlone:
            return block.forward(block.module, *args, **kwargs)
        reducer = generation.reducer
        if reducer is None:
            return block.forward(block.module, *args, **kwargs)
        args, kwargs = reducer.reduce_call(block.module, layer, scale, args, kwargs)
        out = reducer.restore_output(layer, scale, block.forward(block.module, *args, **kwargs))
        if layer == self._last_layer and generation.finished:
            self._generations.end(generation)
        return out

    def _run(self, context: SiteContext, site: Site, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        generation, layer, scale = context
        # Outputs of modules that were compiled by the model's own code carry dynamic-shape marks; a
        # detached tensor does not.
        args = tuple([arg.detach() if isinstance(arg, Tensor) else arg for arg in args])
        if kwargs:
            kwargs = {name: arg.detach() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        try:
            if generation.caches is None:
                return generation.compiled(kind, scale)(site.module, *args, **kwargs)
            lengths = generation.lengths(scale, layer)
            return generation.compiled(kind, scale, lengths)(site.module, *args, **kwargs)
        except SparvarError:
            raise
        except Exception as error:
            cause = self._compiled.unwrap_error(error)
            if cause is error:
                raise
            raise cause from None

    def _run_hooked(
        self, context: SiteContext, site: Site, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        proceed = functools.partial(self._run, context, site, kind, args, kwargs)
        return self.hooks.graph_call(context, args, kwargs, proceed)

    def _fall_back_to_attention(self, site: Site, error: GraphBreakError) -> bool:
        """Compile attention modules where blocks cannot be captured; nothing of the failed call has run.

        False where a site is not a whole block, or the caller chose what is compiled.
        """
        if site.wrapped == site.name:
            return False
        self.unwrap()
        found = self._compiled.fall_back_to_attention()
        if found is not None:
            self._router.use(found)
            self._use(found)
            self.notes.append(f"attention is compiled without its block, which is not one graph: {error}")
        self.wrap()
        return found is not None

    def _leave_alone(self, site: Site, reason: LeftAlone) -> None:
        if reason.warn and site.name not in self.left_alone:
            warnings.warn(f"site {site.name}: {reason}", SparvarWarning, stacklevel=4)
        self.left_alone[site.name] = str(reason)

    def _complain(self, text: str) -> None:
        if self.strict:
            raise CaptureError(text)
        warnings.warn(text, SparvarWarning, stacklevel=4)

    def _differs(self, site: Site, scale: int, kind: str, ran: str) -> None:
        text = message(f"site {site.name} at scale {scale}", f"run {kind}, as the plan says", ran)
        if self.strict:
            raise CaptureError(f"{text}; see sparvar.explain(model) for the reason")
        warnings.warn(text, SparvarWarning, stacklevel=3)


_NOT_RUN = object()
