"""Compiled graphs of a site: what Dynamo captures, rewritten by the passes and compiled, one per scale and kind."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo as dynamo
from torch import Tensor, fx

from sparvar.errors import CaptureError, GraphBreakError, SparvarError, message
from sparvar.passes import PASSES, GraphContext, Report, run_passes, uuid
from sparvar.runtime.context import current
from sparvar.version import __version__

VARIANTS = 32
"""Models, batch sizes and dtypes of one schedule that a process may use before Dynamo's limit is in the way."""


def inner_compile(module: fx.GraphModule, inputs: Sequence[Tensor], inner: str) -> Callable[..., Any]:
    if inner == "eager":
        return module.forward
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(module, list(inputs), config_patches={"post_grad_custom_post_pass": _cache_key()})
    return compiled


@functools.cache
def _cache_key() -> Any:
    """A pass that does nothing but put our version into the key of Inductor's on-disk cache.

    The key holds the names of custom ops and not what their fakes return, so that without it a graph
    cached by another version would be found and would assert other shapes or strides.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    contracts = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*op*.py")):
        contracts.update(file.read_bytes())
    mark = f"sparvar-{__version__}-{uuid(PASSES)}-{contracts.hexdigest()[:16]}"

    class CacheKey(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            return None

        def uuid(self) -> str:
            return mark

    return CacheKey()


class SiteCompiler:
    """Dynamo backend of sites for one kind."""

    def __init__(self, kind: str, graphs: SiteGraphs) -> None:
        self.kind, self.graphs = kind, graphs
        self.__name__ = f"sparvar_{kind}"

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        site = current()
        session = site.session
        whole = session.tokens(site.scale)
        tokens = session.site_tokens(site.scale, site.layer)
        keys, room = session.lengths(site.scale, site.layer)
        context = GraphContext(
            kind=self.kind,
            scale=site.scale,
            tokens=tokens,
            keys=keys - whole + tokens,
            capacity=room,
            heads=session.plan.model.heads,
            head_dim=session.plan.model.head_dim,
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
        self._compiled: dict[tuple[str, int, tuple[int, int] | None], Callable[..., Any]] = {}
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, VARIANTS)

    def compiled(self, kind: str, scale: int, lengths: tuple[int, int] | None = None) -> Callable[..., Any]:
        """The compiled forward of ``kind`` at ``scale``; nothing is compiled before it is called.

        ``lengths`` are those of a compressed cache, see `Session.lengths`; None where caches are whole.
        """
        found = self._compiled.get((kind, scale, lengths))
        if found is None:
            made = torch.compile(
                copy_of(self.forward), backend=SiteCompiler(kind, self), dynamic=False, fullgraph=self.strict
            )
            found = self._compiled.setdefault((kind, scale, lengths), made)
        return found

    def admit(self, variant: object) -> None:
        """Refuse a generation whose graphs would not all be kept, before it begins.

        ``variant`` is what makes Dynamo compile every scale again (model, batch, dtype, device, autocast).

        Raises:
            CaptureError: Dynamo's limit is too low for one more.
        """
        if variant in self.variants:
            return
        needed = len(self.variants) + 1
        for name in ("recompile_limit", "accumulated_recompile_limit"):
            have = getattr(dynamo.config, name)
            if have < needed:
                raise CaptureError(
                    message(
                        f"torch._dynamo.config.{name}",
                        f"be at least {needed}, the models, batch sizes and dtypes in use for this schedule",
                        str(have),
                        f"set torch._dynamo.config.{name} = {needed} or more, or use fewer batch sizes in one process",
                    )
                )
        self.variants.add(variant)


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
    if isinstance(error, dynamo.exc.FailOnRecompileLimitHit):
        return CaptureError(
            message(
                "compiled graphs",
                f"be at most {dynamo.config.recompile_limit} per kind (scales times batch sizes and dtypes in use)",
                "one more",
                "raise torch._dynamo.config.recompile_limit, or use fewer batch sizes in one process",
            )
        )
    if isinstance(error, dynamo.exc.Unsupported):
        return GraphBreakError(
            f"a site could not be captured as one graph: {str(error).splitlines()[0]};"
            ' if it is a block with graph breaks, use options={"grain": "attention"}'
        )
    return error
