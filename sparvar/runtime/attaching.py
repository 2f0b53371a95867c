"""Put an attachment on a model, find it there, and take it off again."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from sparvar.kernels import kv_release
from sparvar.kernels.common.torch_compat import original_module
from sparvar.models.call_arguments import GENERATION_METHODS, bound_arguments, declared_schedule, parameters_of
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.generation_loop import generate_truncated
from sparvar.scale_plans import Plan, Schedule

_ATTRIBUTE = "_sparvar_attachment"


def attach(model: nn.Module, attachment: Attachment) -> None:
    """Put ``attachment`` on ``model``: its sites' forwards and generation methods go through it from now on."""
    detach(model)
    attachment.wrap()
    for name in GENERATION_METHODS:
        method = getattr(type(model), name, None)
        if isinstance(method, types.FunctionType) and not inspect.isgeneratorfunction(inspect.unwrap(method)):
            object.__setattr__(model, name, _generation(attachment, model, types.MethodType(method, model)))
    object.__setattr__(model, _ATTRIBUTE, attachment)


def _generation(attachment: Attachment, model: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = parameters_of(method)

    @functools.wraps(method)
    def generate(*args: Any, **kwargs: Any) -> Any:
        arguments = bound_arguments(signature, args, kwargs)
        schedule = declared_schedule(arguments)
        with attachment.generating(schedule):
            plan = _chained_plan(attachment, schedule)
            if plan is None:
                return method(*args, **kwargs)
            if signature is not None:
                signature.bind(*args, **kwargs)  # the method's own error for a call that does not fit
            return generate_truncated(attachment, plan, model, arguments)

    return generate


def _chained_plan(attachment: Attachment, schedule: Schedule | None) -> Plan | None:
    """The plan of a generation that the model's own loop over scales must not run; else None.

    It skips scales, may decide to, or a hook is told of every scale that is finished.
    """
    plans, told = attachment.plans, attachment.hooks.scales_finished
    if not attachment.enabled or not (told or plans.rule or any(plan.shortens for plan in plans.plans)):
        return None
    plan = attachment.choose(schedule).plan
    return plan if told or plan.shortens else None


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment of a model, or of the model inside a ``torch.compile`` wrapper, or None."""
    inner = original_module(model)
    return inner.__dict__.get(_ATTRIBUTE)


def detach(model: nn.Module) -> None:
    """Give the model its own forwards back, and memory kept for its next generation back to the system."""
    inner = original_module(model)
    attachment = inner.__dict__.pop(_ATTRIBUTE, None)
    if attachment is not None:
        attachment.unwrap()
        for name in GENERATION_METHODS:
            inner.__dict__.pop(name, None)
        kv_release()
