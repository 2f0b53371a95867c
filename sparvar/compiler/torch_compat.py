"""Private and version-bound names of torch that sparvar depends on above its kernels: Dynamo, Inductor, export.

Nothing else above the kernels may use such a name; those that kernels need, and what stands on kernels alone, are in
`sparvar.kernels.common.torch_compat`. A new torch that moved one is met here: ``tests/compiler/test_torch_compat.py``
tells which. Names are looked up when they are needed, so that a missing one stops only what uses it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from sparvar.errors import CaptureError, message

VARIANTS = 32
"""Models, batch sizes and dtypes of one schedule that a process may use, where the user has set no limit to them."""

ASSERT_METADATA = "aten._assert_tensor_metadata.default"
"""The op of exported graphs that asserts a tensor's dtype and device, and computes nothing."""


# Dynamo: limits and errors


def recompile_limits() -> dict[str, int]:
    """Dynamo's limits for our graphs by name: the user's own, and `VARIANTS` for one that is at torch's default."""
    dynamo: Any = torch._dynamo.config
    limits = {name: getattr(dynamo, name) for name in ("recompile_limit", "accumulated_recompile_limit")}
    if limits["recompile_limit"] == dynamo._config["recompile_limit"].default:
        limits["recompile_limit"] = max(limits["recompile_limit"], VARIANTS)
    return limits


def compile_with_limit(
    function: Callable[..., Any], backend: Callable[..., Any], fullgraph: bool, limit: int
) -> Callable[..., Any]:
    """`torch.compile` of a function for static shapes, of which ``limit`` variants may be kept.

    The user's limit for other functions stays as it is. torch 2.13 and later take a limit for one function; with
    earlier ones the user's is replaced while the function runs.
    """
    options: dict[str, Any] = {"backend": backend, "dynamic": False, "fullgraph": fullgraph}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = limit
        return torch.compile(function, **options)
    compiled = torch.compile(function, **options)

    @functools.wraps(compiled)
    def limited(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=limit):
            return compiled(*args, **kwargs)

    return limited


def exceeds_limit(error: BaseException) -> bool:
    """Whether an error says that Dynamo's limits allow no further graph of a function."""
    return isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit)


def unsupported(error: BaseException) -> bool:
    """Whether an error says that Dynamo cannot capture a function as one graph."""
    return isinstance(error, torch._dynamo.exc.Unsupported)


def fold_numpy(active: Callable[[], bool]) -> None:
    """Make NumPy functions of Python integers give Python integers in traces during which ``active()`` is true.

    Infinity sums the sizes of earlier scales with ``np.sum`` and slices with the result. Dynamo makes a tensor of it
    and cannot slice with that; the integers are constants of the trace, so their sum is one, too. A torch whose Dynamo
    is built otherwise is left alone, and says itself what it cannot trace.
    """
    from torch._dynamo.variables import ConstantVariable
    from torch._dynamo.variables.misc import NumpyVariable

    original = NumpyVariable.call_function
    if getattr(original, "_sparvar", False) or list(inspect.signature(original).parameters)[2:4] != ["args", "kwargs"]:
        return

    @functools.wraps(original)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if active() and not kwargs and all(arg.is_python_constant() for arg in args):
            given = [arg.as_python_constant() for arg in args]
            if all(_integers(value) for value in given):
                value = self.value(*given)
                if isinstance(value, np.integer):
                    return ConstantVariable.create(int(value))
        return original(self, tx, args, kwargs)

    call_function._sparvar = True  # type: ignore[attr-defined]
    NumpyVariable.call_function = call_function  # type: ignore[method-assign]


def _integers(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_integers(part) for part in value)
    return isinstance(value, int)


def dynamo_source(node: fx.Node) -> str:
    """Where Dynamo found the value of a placeholder, as an expression of the traced function's arguments; or ""."""
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None) or getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)  # a method in earlier torch


# torch.compile: its wrapper of a module


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is `torch.compile`'s wrapper of another, or was compiled in place (`nn.Module.compile`)."""
    from torch._dynamo.eval_frame import OptimizedModule

    return isinstance(module, OptimizedModule) or module._compiled_call_impl is not None


Before = Callable[[nn.Module, Callable[..., Any], Mapping[str, Any]], None]
"""Takes a module that `torch.compile` is about to wrap, the backend, and the backend's ``mode`` and ``options``."""


def call_before_wrapping(before: Before) -> None:
    """Let ``before`` be called whenever `torch.compile` wraps a module, before it does.

    Raises:
        CaptureError: this torch builds its wrapper in another way, so that ``before`` would not be called, or would not
            be told the backend.
    """
    from torch._dynamo.eval_frame import OptimizedModule

    original = OptimizedModule.__init__
    names = list(inspect.signature(original).parameters)
    if names[:3] != ["self", "mod", "dynamo_ctx"]:
        raise _other_wrapper(f"({', '.join(names[1:])})")
    called: list[Before] = []

    @functools.wraps(original)
    def init(self: OptimizedModule, mod: nn.Module, dynamo_ctx: Any) -> None:
        for each in called:
            each(mod, *_backend_of(dynamo_ctx))
        original(self, mod, dynamo_ctx)

    OptimizedModule.__init__ = init  # type: ignore[method-assign]
    if not _told_of(called):
        OptimizedModule.__init__ = original  # type: ignore[method-assign]
        raise _other_wrapper("a wrapper that does not hold the backend where those do")
    called.append(before)


def _backend_of(context: Any) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """The backend below the wrappers that `torch.compile` puts around it, with the arguments that it is called with."""
    seen = getattr(context, "callback", None)
    keywords: Mapping[str, Any] = {}
    while (inner := getattr(seen, "_torchdynamo_orig_backend", None) or getattr(seen, "compiler_fn", None)) is not None:
        keywords = getattr(seen, "kwargs", keywords)
        seen = inner
    return seen, keywords  # type: ignore[return-value]


def _told_of(called: list[Before]) -> bool:
    """Try `torch.compile` on a module of no effect: True where it says so, or wraps nothing in this process."""
    seen: list[tuple[Any, ...]] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        return module.forward

    called.append(lambda *given: seen.append(given))
    module = nn.Identity()
    wrapped = torch.compile(module, backend=backend, options={"seen": True})
    called.clear()
    return wrapped is module or seen == [(module, backend, {"options": {"seen": True}})]


def _other_wrapper(got: str) -> CaptureError:
    return CaptureError(
        message(
            f"torch {torch.__version__}",
            "build OptimizedModule from (mod, dynamo_ctx), as torch 2.11 to 2.13 do",
            got,
            "install a torch version of constraints.txt or a newer sparvar, or use sparvar.compile(model)",
        )
    )


# Inductor


def compile_graph(module: fx.GraphModule, inputs: Sequence[Tensor], post_pass: Any) -> Callable[..., Any]:
    """Compile a graph with Inductor, ``post_pass`` in the place of the user's own ``post_grad_custom_post_pass``."""
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(module, list(inputs), config_patches={"post_grad_custom_post_pass": post_pass})
    return compiled


def user_post_passes() -> tuple[Callable[..., None], ...]:
    """The user's own ``post_grad_custom_post_pass``: none, one, or several where torch takes a list."""
    from torch._inductor import config

    found = config.post_grad_custom_post_pass
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def graph_pass_class(aware: bool = False) -> type:
    """The base of passes that have a ``uuid()``; ``aware``: of those that are told ``is_inference`` as well."""
    from torch._inductor import custom_graph_pass

    return custom_graph_pass.CustomInferenceAwareGraphPass if aware else custom_graph_pass.CustomGraphPass


def inductor_settings() -> Mapping[str, Any]:
    """Every setting of Inductor by its dotted name, with its value."""
    from torch._inductor import config

    settings: Mapping[str, Any] = config.get_config_copy()
    return settings


# torch.export and AOTInductor


def fake_mode() -> Any:
    """A mode under which tensors have shapes and no values; real tensors that it meets count as such."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def without_examples(exported: ExportedProgram) -> Iterator[None]:
    """Take the example inputs out of a program for a while, so that saving it does not write their values."""
    given, exported._example_inputs = exported._example_inputs, None
    try:
        yield
    finally:
        exported._example_inputs = given


def compile_files(module: Any, inputs: tuple[Tensor, ...], settings: Mapping[str, Any]) -> list[str]:
    """Compile the module of an exported program with AOTInductor and return the files that make a package."""
    from torch._inductor import aot_compile

    files = aot_compile(module, inputs, {}, options=dict(settings))
    assert isinstance(files, list)
    return [str(file) for file in files]


def package_files(target: Path, files: Sequence[str]) -> None:
    """Pack what `compile_files` returned into the archive ``target``."""
    from torch._inductor.package.package import package_aoti

    package_aoti(str(target), list(files))
