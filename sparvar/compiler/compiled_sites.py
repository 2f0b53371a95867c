"""Compiled graphs of a site: what Dynamo captures, rewritten by the passes and compiled, one per scale and kind."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from sparvar.compiler.inductor_cache import post_pass
from sparvar.compiler.torch_compat import (
    compile_graph,
    compile_with_limit,
    exceeds_limit,
    recompile_limits,
    unsupported,
)
from sparvar.errors import CaptureError, GraphBreakError, SparvarError, message
from sparvar.passes import GraphContext, Report, run_passes
from sparvar.runtime.generation import current


def inner_compile(module: fx.GraphModule, inputs: Sequence[Tensor], inner: str) -> Callable[..., Any]:
    """Compile a graph with the inner compiler: ``eager`` runs it as it is, ``inductor`` generates code."""
    return module.forward if inner == "eager" else compile_graph(module, inputs, post_pass())


class SiteCompiler:
    """Dynamo backend of the sites of one kind: passes rewrite the captured graph, the inner compiler compiles it."""

    def __init__(self, kind: str, graphs: SiteGraphs) -> None:
        self.kind, self.graphs = kind, graphs
        self.__name__ = f"sparvar_{kind}"

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        site = current()
        generation = site.generation
        whole = generation.tokens(site.scale)
        tokens = generation.site_tokens(site.scale, site.layer)
        keys, room = generation.lengths(site.scale, site.layer)
        context = GraphContext(
            kind=self.kind,
            scale=site.scale,
            tokens=tokens,
            keys=keys - whole + tokens,
            capacity=room,
            heads=generation.plan.model.heads,
            head_dim=generation.plan.model.head_dim,
            whole=whole if tokens < whole else 0,
        )
        report = run_passes(module, context, dump=self.graphs.dump)
        self.graphs.reports.append(report)
        if self.kind != "dense" and report.counts[f"site_{self.kind}"] == 0 and self.graphs.strict:
            reasons = [f"{refusal.node}: {refusal.reason}" for refusal in report.refusals]
            raise CaptureError(
                f"scale {site.scale}, layer {site.layer}: the plan says {self.kind}, but no attention was rewritten: "
                + "; ".join(reasons or ["there is no attention in its graph"])
            )
        return inner_compile(module, inputs, self.graphs.inner)


class SiteGraphs:
    """Compiled forwards of one class of site for one schedule: one per scale and kind, shared by all layers.

    Each is a copy of the forward's code, because Dynamo counts and searches compiled variants per code object: a call
    finds its graph at the first try, and other plans, scales, kinds and models use up nothing of its recompile limit.
    """

    def __init__(self, forward: Callable[..., Any], inner: str, strict: bool, dump: Path | None) -> None:
        self.forward, self.inner, self.strict, self.dump = forward, inner, strict, dump
        self.reports: list[Report] = []
        self.variants: set[object] = set()
        self._limit = recompile_limits()["recompile_limit"]
        self._copies: dict[_Key, tuple[Callable[..., Any], SiteCompiler]] = {}
        self._compiled: dict[_Key, Callable[..., Any]] = {}

    def compiled(self, kind: str, scale: int, lengths: tuple[int, int] | None = None) -> Callable[..., Any]:
        """The compiled forward of ``kind`` at ``scale``; nothing is compiled before it is called.

        ``lengths`` are those of a compressed cache, see `Generation.lengths`; None where caches are whole.
        """
        key = kind, scale, lengths
        found = self._compiled.get(key)
        if found is None:
            copy, compiler = self._copies.setdefault(key, (copy_of(self.forward), SiteCompiler(kind, self)))
            made = compile_with_limit(copy, compiler, fullgraph=self.strict, limit=self._limit)
            found = self._compiled.setdefault(key, made)
        return found

    def check_recompile_limit(self, variant: object) -> None:
        """Refuse a generation whose graphs would not all be kept, before it begins.

        ``variant`` is what makes Dynamo compile every scale again (model, batch, dtype, device, autocast).

        Raises:
            CaptureError: Dynamo's limit is too low for one more.
        """
        if variant in self.variants:
            return
        needed = len(self.variants) + 1
        limits = recompile_limits()
        for name, have in limits.items():
            if have < needed:
                raise CaptureError(
                    message(
                        f"torch._dynamo.config.{name}",
                        f"be at least {needed}, the models, batch sizes and dtypes in use for this schedule",
                        str(have),
                        f"set torch._dynamo.config.{name} = {needed} or more, or use fewer batch sizes in one process",
                    )
                )
        if limits["recompile_limit"] > self._limit:  # the user raised it; graphs that there are stay with their copies
            self._limit = limits["recompile_limit"]
            self._compiled.clear()
        self.variants.add(variant)


_Key = tuple[str, int, tuple[int, int] | None]
"""Kind, scale, and lengths of a compressed cache."""


def copy_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own code object, which Dynamo's limits then count alone."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@functools.lru_cache(maxsize=16)
def site_graphs(
    forward: Callable[..., Any],
    schedule: tuple[tuple[int, int], ...],
    prefix: int,
    inner: str,
    strict: bool,
    dump: Path | None,
) -> SiteGraphs:
    """Graphs of a schedule.

    Site ops read policies, budgets and windows at run time, so that another plan for the same schedule finds the
    graphs compiled; ``prefix`` is part of the key because the KV buffer's size is.
    """
    return SiteGraphs(forward, inner, strict, dump)


def unwrap_error(error: BaseException) -> BaseException:
    """The sparvar error inside what Dynamo raises around a backend's error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SparvarError):
            return seen
        seen = getattr(seen, "inner_exception", None) or seen.__cause__
    if exceeds_limit(error):
        limit = recompile_limits()["recompile_limit"]
        return CaptureError(
            message(
                "compiled graphs",
                f"be at most {limit} per kind (scales times batch sizes and dtypes in use)",
                "one more",
                "raise torch._dynamo.config.recompile_limit, or use fewer batch sizes in one process",
            )
        )
    if unsupported(error):
        return GraphBreakError(
            f"a site could not be captured as one graph: {str(error).splitlines()[0]};"
            ' if it is a block with graph breaks, use options={"grain": "attention"}'
        )
    return error
