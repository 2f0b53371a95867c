"""What torch loads for ``torch.compile(model, backend="sparvar")``: the backend, and attaching when a model is wrapped.

The generation method of a VAR model is not ``forward``, so that compiling ``forward`` alone would change nothing
without a sound. Loading this module therefore makes `torch.compile` attach sparvar to a model before it wraps it.
`sparvar.compile` needs none of this and does not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from sparvar.backend import attach_model
from sparvar.compiler.compiled_sites import inner_compile
from sparvar.compiler.torch_compat import call_before_wrapping
from sparvar.errors import OptionError, message
from sparvar.options import Options


def sparvar_backend(
    module: fx.GraphModule,
    inputs: Sequence[Tensor],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a graph that is not part of a site with the inner compiler, unchanged.

    ``torch.compile(model, backend="sparvar")`` attaches to the model's sites when it builds its wrapper; what Dynamo
    hands to this function afterwards is the rest of the model.

    Raises:
        OptionError: an option is unknown or has a wrong value, or a mode was given.
    """
    return inner_compile(module, inputs, _options(options, mode).inner)


def _options(options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
    if mode is not None:
        raise OptionError(message("mode", "not be given with backend='sparvar'", repr(mode), "use options={...}"))
    return Options.of(options)


def _attach(module: nn.Module, backend: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Attach to a module that `torch.compile` is about to wrap, if it is for our backend."""
    if backend is sparvar_backend:
        attach_model(module, _options(keywords.get("options"), keywords.get("mode")))


call_before_wrapping(_attach)
