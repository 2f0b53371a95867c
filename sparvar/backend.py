"""The ``torch.compile`` entry point: the one place that wires the stages together."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo as dynamo
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from sparvar.errors import CaptureError, OptionError, PlanError, SparvarError, message
from sparvar.options import Options
from sparvar.passes import PASSES, Candidate, GraphContext, Report, find_candidates, fingerprint, run_passes, uuid
from sparvar.runtime.attachment import KINDS, Attachment, Site, attach, attachment_of, detach
from sparvar.runtime.context import current
from sparvar.scale_plans import Plan, find_plan, load_plan
from sparvar.version import __version__

VARIANTS = 8
"""Batch sizes and dtypes for which one process may hold graphs of every scale before Dynamo's limit is in the way."""


def resolve_plan(model: nn.Module, source: Plan | Path | str) -> Plan:
    """The plan that an option names; ``"auto"`` finds the shipped plan of the model's fingerprint.

    Raises:
        PlanError: there is none, it cannot be read, or it was made for another model.
    """
    mark = fingerprint(model)
    if source == "auto":
        plan = find_plan(mark)
        if plan is None:
            raise PlanError(
                f'plan "auto": no shipped plan has the fingerprint of this {type(model).__name__} ({mark[:19]}...);'
                ' pass options={"plan": ...} with a plan made for it (sparvar.scale_plans.default_plan starts one)'
            )
        return plan
    plan = load_plan(source)
    problems = plan.check()
    if problems:
        raise PlanError(problems)
    if plan.model.fingerprint and plan.model.fingerprint != mark:
        raise PlanError(
            message(
                "plan",
                f"be made for this {type(model).__name__} (fingerprint {mark[:19]}...)",
                f"one for {plan.model.family or 'another model'} ({plan.model.fingerprint[:19]}...)",
                "use that model, or a plan made for this one",
            )
        )
    return plan


def choose_sites(model: nn.Module, plan: Plan, grain: str) -> list[Site]:
    """The modules to wrap, in the plan's order.

    Raises:
        CaptureError: the model has no attention, or the plan names modules that hold none.
    """
    candidates = {candidate.name: candidate for candidate in find_candidates(model)}
    if not candidates:
        raise CaptureError(
            message(
                f"model {type(model).__name__}",
                "hold modules whose forward calls attention (scaled_dot_product_attention)",
                "none among its modules",
                "sparvar has nothing to do here",
            )
        )
    missing = [name for name in plan.model.sites if name not in candidates]
    if missing:
        raise PlanError(
            [f"site {name!r}: the model has no attention module of that name" for name in missing]
            + [f"attention modules of this model: {', '.join(candidates)}"]
        )
    per_block: dict[str | None, int] = {}
    for candidate in candidates.values():
        per_block[candidate.block] = per_block.get(candidate.block, 0) + 1
    sites = []
    for name in plan.model.sites:
        candidate = candidates[name]
        alone = candidate.block is not None and per_block[candidate.block] == 1
        if grain == "block" and not alone:
            raise OptionError(
                message("option grain", "be attention where a block holds several attentions or none holds it", "block")
            )
        sites.append(_site(model, candidate, whole_block=alone and grain != "attention"))
    return sites


def _site(model: nn.Module, candidate: Candidate, whole_block: bool) -> Site:
    wrapped = candidate.block if whole_block and candidate.block is not None else candidate.name
    module = model.get_submodule(wrapped)
    return Site(candidate.name, module, wrapped, type(module).forward)


def _inner_compile(module: fx.GraphModule, inputs: Sequence[Tensor], inner: str) -> Callable[..., Any]:
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
    for file in sorted(Path(__file__).parent.rglob("*op*.py")):
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
        plan = site.session.plan
        context = GraphContext(
            kind=self.kind,
            scale=site.scale,
            tokens=plan.tokens(site.scale) + (plan.prefix if site.scale == 1 else 0),
            keys=plan.keys(site.scale),
            capacity=plan.keys(len(plan.schedule)),
        )
        report = run_passes(module, context, dump=self.graphs.dump)
        self.graphs.reports.append(report)
        if self.kind != "dense" and report.counts[f"site_{self.kind}"] == 0 and self.graphs.strict:
            reasons = [f"{refusal.node}: {refusal.reason}" for refusal in report.refusals]
            raise CaptureError(
                f"scale {site.scale}, layer {site.layer}: the plan says {self.kind}, but no attention was rewritten: "
                + "; ".join(reasons or ["there is no attention in its graph"])
            )
        return _inner_compile(module, inputs, self.graphs.inner)


class SiteGraphs:
    """Compiled forwards of one class of site for one schedule: a callable per kind, shared by all layers.

    Each kind compiles a copy of the forward's code, because Dynamo counts and searches compiled variants per code
    object: other plans, kinds and models neither slow this one down nor use up its recompile limit.
    """

    def __init__(self, forward: Callable[..., Any], scales: int, inner: str, strict: bool, dump: Path | None) -> None:
        self.inner, self.strict, self.dump = inner, strict, dump
        self.reports: list[Report] = []
        limit = VARIANTS * scales
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, limit)
        dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, limit)
        self.compiled = {
            kind: torch.compile(_copy(forward), backend=SiteCompiler(kind, self), dynamic=False, fullgraph=strict)
            for kind in KINDS
        }


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
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
def _site_graphs(
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
    return SiteGraphs(forward, len(schedule), inner, strict, dump)


def _unwrap(error: BaseException) -> BaseException:
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
        return CaptureError(
            f"a site could not be captured as one graph: {str(error).splitlines()[0]};"
            ' if it is a block with graph breaks, use options={"grain": "attention"}'
        )
    return error


def compile(model: nn.Module, plan: Plan | Path | str = "auto", **options: Any) -> nn.Module:
    """Attach sparvar to ``model`` in place and return it.

    Args:
        model: a VAR model, as published; generate with its own method afterwards.
        plan: see :class:`Options`, as are the other options.

    Raises:
        PlanError: the plan cannot be read, contradicts itself or is for another model.
        OptionError: an option is unknown or has a wrong value.
        CaptureError: the model has no attention, or is compiled already.
    """
    return _attach(model, Options.of({"plan": plan, **options}))


def _attach(model: nn.Module, options: Options) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise OptionError(
            message("model", "be a torch.nn.Module", type(model).__name__, "pass the model, not a method")
        )
    if isinstance(model, OptimizedModule) or any(
        isinstance(module, OptimizedModule) or module._compiled_call_impl is not None for module in model.modules()
    ):
        raise CaptureError(
            message(
                f"model {type(model).__name__}",
                "not be compiled yet",
                "a model (or a part of one) that torch.compile has wrapped already",
                "pass the model as it was before; sparvar compiles its parts with Inductor itself",
            )
        )
    _check_placement(model)
    plan = resolve_plan(model, options.plan)
    sites = choose_sites(model, plan, options.grain)
    forwards = {site.forward for site in sites}
    if len(forwards) != 1:
        raise PlanError(f"plan: its sites must be modules of one class, got {len(forwards)} classes")
    graphs = _site_graphs(forwards.pop(), plan.schedule, plan.prefix, options.inner, options.strict, options.dump)
    attach(
        model,
        Attachment(
            plan=plan,
            sites=sites,
            strict=options.strict,
            compiled=graphs.compiled,
            unwrap=_unwrap,
            reports=graphs.reports,
        ),
    )
    return model


def reset(model: nn.Module) -> None:
    """Forget a generation that was given up in another thread, so that a new one may start."""
    attachment = attachment_of(model)
    if attachment is not None:
        attachment.reset()


def _check_placement(model: nn.Module) -> None:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise CaptureError(
            message(
                f"model {type(model).__name__}", "be on one device", ", ".join(devices), "move it with model.to(device)"
            )
        )


def sparvar_backend(
    module: fx.GraphModule,
    inputs: Sequence[Tensor],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph that is not part of a site: with the inner compiler, unchanged.

    ``torch.compile(model, backend="sparvar")`` attaches to the model's sites when it builds its
    wrapper; what Dynamo hands to this function afterwards is the rest of the model.
    """
    if mode is not None:
        raise OptionError(message("mode", "not be given with backend='sparvar'", repr(mode), "use options={...}"))
    chosen = Options.of(options)
    return _inner_compile(module, inputs, chosen.inner)


def _compiler_of(context: Any) -> Any:
    """What ``torch.compile`` wrapped around our entry point, found below Dynamo's own wrappers, or None."""
    seen = getattr(context, "callback", None)
    while seen is not None:
        if getattr(seen, "compiler_fn", None) is sparvar_backend:
            return seen
        seen = getattr(seen, "_torchdynamo_orig_backend", None) or getattr(seen, "compiler_fn", None)
    return None


def _install_hook() -> None:
    """Attach when ``torch.compile(model, backend="sparvar")`` builds its wrapper module.

    The entry point is loaded before that wrapper is built.  The generation method of a VAR model is
    not ``forward``, so compiling ``forward`` alone would change nothing without a sound.

    Raises:
        CaptureError: this torch builds its wrapper in another way, so that the hook would not be called.
    """
    original = OptimizedModule.__init__
    if getattr(original, "_sparvar_hook", False):
        return
    names = list(inspect.signature(original).parameters)
    if names[:3] != ["self", "mod", "dynamo_ctx"]:
        raise CaptureError(
            message(
                f"torch {torch.__version__}",
                "build OptimizedModule from (mod, dynamo_ctx), as torch 2.11 to 2.13 do",
                f"({', '.join(names[1:])})",
                "install a torch version of constraints.txt, or a newer sparvar",
            )
        )

    @functools.wraps(original)
    def init(self: OptimizedModule, mod: nn.Module, dynamo_ctx: Any) -> None:
        wrapper = _compiler_of(dynamo_ctx)
        if wrapper is not None:
            kwargs = getattr(wrapper, "kwargs", {})
            if "mode" in kwargs:
                raise OptionError(
                    message("mode", "not be given with backend='sparvar'", repr(kwargs["mode"]), "use options={...}")
                )
            _attach(mod, Options.of(kwargs.get("options")))
        original(self, mod, dynamo_ctx)

    init._sparvar_hook = True  # type: ignore[attr-defined]
    OptimizedModule.__init__ = init  # type: ignore[method-assign]


_install_hook()

__all__ = ["attachment_of", "compile", "detach", "reset", "resolve_plan", "sparvar_backend"]
