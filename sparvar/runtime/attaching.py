"""Put an attachment on a model, find it there, and take it off again."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from sparvar.kernels import kv_release
from sparvar.runtime.attachment import Attachment, put_wrappers, remove_wrappers
from sparvar.runtime.schedules import bound_arguments, declared_schedule, parameters_of

GENERATION_METHODS = ("autoregressive_infer_cfg", "generate")
"""Methods of published models that run a whole generation."""
_ATTRIBUTE = "_sparvar_attachment"


def attach(model: nn.Module, attachment: Attachment) -> None:
    """Put ``attachment`` on ``model``: its sites' forwards and generation methods go through it from now on."""
    detach(model)
    put_wrappers(attachment)
    for name in GENERATION_METHODS:
        method = getattr(type(model), name, None)
        if isinstance(method, types.FunctionType) and not inspect.isgeneratorfunction(inspect.unwrap(method)):
            object.__setattr__(model, name, _generation(attachment, types.MethodType(method, model)))
    object.__setattr__(model, _ATTRIBUTE, attachment)


def _generation(attachment: Attachment, method: Callable[..., Any]) -> Callable[..., Any]:
    signature = parameters_of(method)

    @functools.wraps(method)
    def generate(*args: Any, **kwargs: Any) -> Any:
        with attachment.generating(declared_schedule(bound_arguments(signature, args, kwargs))):
            return method(*args, **kwargs)

    return generate


def attachment_of(model: nn.Module) -> Attachment | None:
    """The attachment of a model, or of the model inside a ``torch.compile`` wrapper, or None."""
    inner = getattr(model, "_orig_mod", model)
    return inner.__dict__.get(_ATTRIBUTE)


def detach(model: nn.Module) -> None:
    """Give the model its own forwards back, and memory kept for its next generation back to the system."""
    inner = getattr(model, "_orig_mod", model)
    attachment = inner.__dict__.pop(_ATTRIBUTE, None)
    if attachment is not None:
        remove_wrappers(attachment)
        for name in GENERATION_METHODS:
            inner.__dict__.pop(name, None)
        kv_release()
