"""Which call is this: from the arguments of a site's call to its generation and its scale."""

from __future__ import annotations

from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparvar.errors import CaptureError, SessionError, message
from sparvar.models.call_arguments import SCALE_ARGUMENT, SUBSET_ARGUMENTS, bound_arguments, declared_schedule
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import Generation, Generations
from sparvar.runtime.hooks import Hooks
from sparvar.runtime.sites import CompiledSites, Graphs, Site
from sparvar.scale_plans import Plan, PlanSet, Schedule, schedule_text


class LeftAlone(Exception):
    """A call that is not part of a generation, or cannot be: the site runs as it is.

    ``warn``: users expect such a call to follow the plan.
    """

    def __init__(self, reason: str, warn: bool = False) -> None:
        super().__init__(reason)
        self.warn = warn


class Prepared(NamedTuple):
    """A plan with what it runs on: compiled graphs, and CSLA column lists by scale, which all generations share."""

    plan: Plan
    graphs: Graphs
    local: dict[int, Columns]


class Router:
    """Finds the generation and the scale of every call of a site, and begins generations.

    Args:
        plans: one per schedule.
        compiled: the sites, and graphs for plans.
        generations: of the model.
        hooks: whose observer new generations get.
    """

    def __init__(self, plans: PlanSet, compiled: CompiledSites, generations: Generations, hooks: Hooks) -> None:
        self.plans, self.generations, self.hooks = plans, generations, hooks
        self.prepared: dict[Schedule | None, Prepared] = {}
        self.use(compiled)
        if len(plans.plans) == 1:
            self.choose(None)

    def use(self, compiled: CompiledSites) -> None:
        """Route calls of these sites from now on; the generation under way goes on with their graphs."""
        self._compiled = compiled
        for schedule, entry in list(self.prepared.items()):
            self.prepared[schedule] = entry._replace(graphs=compiled.graphs_of(entry.plan))
        generation = self.generations.current
        if generation is not None:
            generation.compiled = compiled.graphs_of(generation.plan).compiled

    def choose(self, schedule: Schedule | None) -> Prepared:
        """The plan for the schedule that a call named, or the only one.

        Raises:
            PlanError: there is none for that schedule, or several and no name.
        """
        if schedule not in self.prepared:
            plan = self.plans.choose(schedule)
            known = next((entry for entry in self.prepared.values() if entry.plan == plan), None)
            self.prepared[schedule] = known or Prepared(plan, self._compiled.graphs_of(plan), {})
        return self.prepared[schedule]

    def locate(self, site: Site, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Generation, int]:
        """The generation and the 1-based scale of a call of ``site``, the one of ``layer`` or the block around that.

        Raises:
            LeftAlone: the call belongs to no generation.
            SessionError: the call does not fit the generation under way, or another thread generates.
        """
        tokens = tokens_of(args, kwargs, site.name)
        generation = self.generations.under_way
        if generation is not None and generation.owner != get_ident():
            generation = None
        if generation is not None and generation.is_next_call(layer, tokens, kwargs.get(SCALE_ARGUMENT)):
            return generation, generation.calls[layer] + 1
        if layer == 0:
            generation = self._first_layer(generation, site, tokens, args, kwargs)
        elif generation is None:
            raise _no_generation(tokens, self.choose(self.generations.here.declared).plan)
        _check_whole_grid(generation, site, layer, tokens, args, kwargs)
        return generation, generation.scale_of(layer, tokens)

    def _first_layer(
        self, generation: Generation | None, site: Site, tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generation:
        """The generation of a call of the first layer; one with the first scale's tokens starts a new one."""
        named = bound_arguments(site.signature, args, kwargs)
        index = named.get(SCALE_ARGUMENT)
        if generation is None or (generation.started and _restarts(generation, tokens, index)):
            generation = self._begin(tokens, named, args, kwargs)
        if isinstance(index, int) and index != generation.calls[0]:
            raise SessionError(
                message(
                    "generation",
                    f"go on with scale {generation.calls[0] + 1} ({SCALE_ARGUMENT} {generation.calls[0]})",
                    f"{SCALE_ARGUMENT} {index}",
                    "start generations at the first scale, or call sparvar.reset(model) first",
                )
            )
        return generation

    def _begin(self, tokens: int, named: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
        schedule = declared_schedule(named)
        plan, graphs, local = self.choose(schedule if schedule is not None else self.generations.here.declared)
        alone = plan.prefix > 0 and tokens == plan.prefix
        if not alone and tokens != plan.tokens(1) + plan.prefix:
            raise _no_generation(tokens, plan)
        # By the model and not by this attachment: attached again, the model finds its graphs.
        graphs.check_recompile_limit((id(self._compiled.sites[0].module), *variant(args, kwargs)))
        generation = Generation(plan, local, graphs.compiled, alone, self.hooks.observer)
        self.generations.begin(generation)
        return generation


def _restarts(generation: Generation, tokens: int, index: object) -> bool:
    """Whether a call of the first layer starts another generation; ``index`` is the 0-based scale it names, or None."""
    if isinstance(index, int):
        return index == 0 and generation.calls[0] > 0
    following = generation.calls[0] + 1
    expected = generation.tokens(following) if following <= len(generation.plan.schedule) else None
    return tokens != expected and tokens == generation.tokens(generation.first)


def _no_generation(tokens: int, plan: Plan) -> Exception:
    total = first = plan.tokens(1) + plan.prefix
    for scale in range(2, len(plan.schedule) + 1):
        total += plan.tokens(scale)
        if tokens == total:
            return LeftAlone(f"one call held the tokens of scales 1 to {scale}: teacher forcing, no generation")
    return SessionError(
        message(
            "generation",
            f"start with the {first} tokens of scale 1 of the plan's schedule ({schedule_text(plan.schedule)})",
            f"{tokens} tokens",
            "use a plan made for this schedule, and start generations at the first scale",
        )
    )


def _check_whole_grid(
    generation: Generation, site: Site, layer: int, tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises :class:`LeftAlone` where a last scale is drawn in parts (MaskGIT)."""
    following = generation.calls[layer] + 1
    if following != len(generation.plan.schedule) or tokens >= generation.tokens(following):
        return
    named = bound_arguments(site.signature, args, kwargs)
    if any(named.get(name) is not None for name in SUBSET_ARGUMENTS):
        raise LeftAlone(
            f"{tokens} of the {generation.tokens(following)} tokens of scale {following} (MaskGIT): windows and"
            " column maps need the whole grid, so the last scale ran dense",
            warn=True,
        )


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
