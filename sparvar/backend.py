"""The ``torch.compile`` entry point: the one place that wires the stages together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from sparvar.dynamo_support import fold_numpy
from sparvar.errors import CaptureError, OptionError, PlanError, message
from sparvar.models.declared_schedule import parameters_of
from sparvar.models.fingerprint import fingerprint
from sparvar.options import Options, PlanSource
from sparvar.passes import Candidate, find_candidates, make_visible
from sparvar.runtime.attaching import attach, attachment_of, detach
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.sites import Around, Site
from sparvar.scale_plans import Plan, PlanSet, find_published, load_plan, published_models, shipped_plans
from sparvar.site_graphs import SiteGraphs, inner_compile, site_graphs, unwrap_error


def resolve_plan(model: nn.Module, source: PlanSource) -> PlanSet:
    """The plans that an option names; ``"auto"`` finds the shipped ones of the model's fingerprint.

    Raises:
        PlanError: there is none, one cannot be read, or was made for another model.
    """
    mark = fingerprint(model)
    if source == "auto":
        shipped = [plan for plan in shipped_plans().values() if _fits(plan, model, mark)]
        found = (
            PlanSet.of(shipped[:1])
            if shipped
            else find_published((name, parameter.shape) for name, parameter in model.named_parameters())
        )
        if found is None:
            raise PlanError(
                f'plan "auto": no shipped plan has the fingerprint of this {type(model).__name__} ({mark[:19]}...),'
                " and its blocks are those of no published model that sparvar knows"
                f" ({', '.join(published_models())});"
                ' pass options={"plan": ...} with a plan made for it (sparvar.scale_plans.default_plan starts one)'
            )
        return found
    if isinstance(source, PlanSet):
        plans = PlanSet.of(source.plans, source.rule, source.name)
    elif isinstance(source, str) and source in published_models():
        plans = published_models()[source].plans()
    else:
        plans = PlanSet.of(load_plan(each) for each in ([source] if isinstance(source, Plan | Path | str) else source))
    for plan in plans.plans:
        if plan.adapt is not None and plan.adapt.fingerprint not in _marks(model, plan, mark):
            raise PlanError(
                message(
                    f"plan {plan.name}: adapt",
                    f"be fitted on this {type(model).__name__} (fingerprint {mark[:19]}...)",
                    f"fitted on another model ({plan.adapt.fingerprint[:19]}...)",
                    "fit it on this one (sparvar.calibrate.fit.skip), or take adapt out of the plan",
                )
            )
        if plan.model.fingerprint and not _fits(plan, model, mark):
            raise PlanError(
                message(
                    "plan",
                    f"be made for this {type(model).__name__} (fingerprint {mark[:19]}...)",
                    f"one for {plan.model.family or 'another model'} ({plan.model.fingerprint[:19]}...)",
                    "use that model, or a plan made for this one",
                )
            )
    return plans


def _fits(plan: Plan, model: nn.Module, mark: str) -> bool:
    """Whether a plan names the fingerprint ``mark`` of ``model``, or the one it would have in the plan's own type."""
    return plan.model.fingerprint in _marks(model, plan, mark)


def _marks(model: nn.Module, plan: Plan, mark: str) -> set[str]:
    dtype = getattr(torch, plan.model.dtype, None)
    return {mark} | ({fingerprint(model, dtype)} if isinstance(dtype, torch.dtype) else set())


def choose_sites(model: nn.Module, plans: PlanSet, grain: str) -> list[Site]:
    """The modules to wrap, in the plans' order.

    Raises:
        CaptureError: the model has no attention, or the plan names modules that hold none.
    """
    candidates = {candidate.name: candidate for candidate in find_candidates(model)}
    possible = [name for name, candidate in candidates.items() if candidate.problem is None]
    if not possible:
        found = "; ".join(f"{candidate.name}: {candidate.problem}" for candidate in candidates.values())
        raise CaptureError(
            message(
                f"model {type(model).__name__}",
                "hold modules whose forward calls attention (scaled_dot_product_attention, flash_attn_func,"
                " memory_efficient_attention, or softmax(QK^T)V)",
                found or "none among its modules",
                "sparvar has nothing to do here",
            )
        )
    wanted = plans.model.sites
    missing = [name for name in wanted if name not in possible]
    if missing:
        reasons = {
            name: candidates[name].problem if name in candidates else "the model has no attention module of that name"
            for name in missing
        }
        raise PlanError(
            [f"site {name!r}: {reason}" for name, reason in reasons.items()]
            + [f"attention modules of this model: {', '.join(possible)}"]
        )
    per_block: dict[str | None, int] = {}
    for candidate in candidates.values():
        per_block[candidate.block] = per_block.get(candidate.block, 0) + 1
    shared: dict[str | None, int] = {}
    for name in wanted:
        shared[candidates[name].block] = shared.get(candidates[name].block, 0) + 1
    sites = []
    for name in wanted:
        candidate = candidates[name]
        own = candidate.block is not None and shared[candidate.block] == 1
        if grain == "block" and not own:
            raise OptionError(message("option grain", "be attention where no block holds a site alone", "block"))
        alone = own and per_block[candidate.block] == 1
        sites.append(_site(model, candidate, whole_block=grain == "block" or (alone and grain != "attention")))
    return sites


def blocks_around(model: nn.Module, plans: PlanSet, sites: Sequence[Site]) -> list[Around]:
    """The blocks that plans reduce, where the sites are the attention modules alone; none where they are the blocks.

    Raises:
        PlanError: a site is in no block of its own.
    """
    if not any(plan.reduces for plan in plans.plans) or sites[0].wrapped != sites[0].name:
        return []
    candidates = {candidate.name: candidate for candidate in find_candidates(model)}
    names = [candidates[site.name].block for site in sites]
    alone = [site.name for site, name in zip(sites, names, strict=True) if name is None or names.count(name) > 1]
    if alone:
        must = "be in a block of their own where a plan leaves out tokens or rows"
        raise PlanError(message(f"site {', '.join(alone[:3])}", must, "none, or one shared with another site"))
    blocks = [model.get_submodule(name) for name in names if name is not None]
    return [Around(block, type(block).forward, parameters_of(block.forward)) for block in blocks]


def _site(model: nn.Module, candidate: Candidate, whole_block: bool) -> Site:
    wrapped = candidate.block if whole_block and candidate.block is not None else candidate.name
    module = model.get_submodule(wrapped)
    make_visible(candidate.module)
    return Site(candidate.name, module, wrapped, type(module).forward, parameters_of(module.forward))


def compile(model: nn.Module, plan: PlanSource = "auto", **options: Any) -> nn.Module:
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
    plans = resolve_plan(model, options.plan)

    def wire(grain: str) -> tuple[list[Site], Callable[[Plan], SiteGraphs], list[Around]]:
        sites = choose_sites(model, plans, grain)
        forwards = {site.forward for site in sites}
        if len(forwards) != 1:
            raise PlanError(f"plan: its sites must be modules of one class, got {len(forwards)} classes")
        forward = forwards.pop()

        def graphs_of(plan: Plan) -> SiteGraphs:
            return site_graphs(forward, plan.schedule, plan.prefix, options.inner, options.strict, options.dump)

        return sites, graphs_of, blocks_around(model, plans, sites)

    sites, graphs_of, around = wire(options.grain)
    narrow = functools.partial(wire, "attention") if options.grain == "auto" else None
    attach(
        model,
        Attachment(
            plans=plans,
            sites=sites,
            strict=options.strict,
            graphs_of=graphs_of,
            unwrap=unwrap_error,
            narrow=narrow,
            around=around,
            shortened=_shortened,
        ),
    )
    return model


def _shortened(attachment: Attachment, plan: Plan, model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    # Families load what few generations need.
    from sparvar.chains import shortened

    return shortened(attachment, plan, model, arguments)


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
    return inner_compile(module, inputs, chosen.inner)


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
fold_numpy()

__all__ = ["attachment_of", "compile", "detach", "reset", "resolve_plan", "sparvar_backend"]
