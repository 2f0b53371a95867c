"""The ``torch.compile`` entry point: the one place that wires the stages together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from sparvar.compiler.compiled_sites import SiteGraphs, inner_compile, site_graphs, unwrap_error
from sparvar.compiler.resolve_plan import resolve_plan
from sparvar.compiler.select_sites import blocks_around, select_sites
from sparvar.compiler.torch_compat import fold_numpy
from sparvar.errors import CaptureError, OptionError, PlanError, message
from sparvar.options import Options, PlanSource
from sparvar.runtime.attaching import attach, attachment_of, detach
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.sites import Around, Site
from sparvar.scale_plans import Plan


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
        sites = select_sites(model, plans, grain)
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
    from sparvar.runtime.generation_loop import shortened

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
