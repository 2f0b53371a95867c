"""Attach sparvar to a model: resolve its plans, select its sites, and put compiled graphs in their place."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparvar.compiler.model_sites import ModelSites
from sparvar.compiler.resolve_plan import resolve_plan
from sparvar.compiler.torch_compat import is_compiled
from sparvar.errors import CaptureError, OptionError, message
from sparvar.options import Options, PlanSource
from sparvar.runtime.attaching import attach, attachment_of, detach
from sparvar.runtime.attachment import Attachment


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
    return attach_model(model, Options.of({"plan": plan, **options}))


def attach_model(model: nn.Module, options: Options) -> nn.Module:
    """`compile` with options that are checked."""
    if not isinstance(model, nn.Module):
        raise OptionError(
            message("model", "be a torch.nn.Module", type(model).__name__, "pass the model, not a method")
        )
    if any(is_compiled(module) for module in model.modules()):
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
    attach(model, Attachment(plans, ModelSites.of(model, plans, options), options.strict))
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


__all__ = ["attach_model", "attachment_of", "compile", "detach", "reset", "resolve_plan"]
