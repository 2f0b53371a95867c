"""Every private name of torch that compiler and export depend on: a failure says which moved, and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule

from sparvar.compiler import torch_compat
from sparvar.errors import CaptureError
from tests.compat import name_stands, untried

KEEPER = "sparvar.compiler.torch_compat"


def stands(name: str, function: str, use: str) -> Any:
    return name_stands(name, f"{KEEPER}.{function}", use)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_every_name_is_tried_here() -> None:
    missing = untried(torch_compat.__file__, __file__)
    assert not missing, f"{KEEPER} uses {', '.join(missing)}: try each in a test of this file"


def test_recompile_limits() -> None:
    use = "raise Dynamo's limits for our own graphs where the user has not set them"
    with stands("torch._dynamo.config", "recompile_limits", use):
        assert set(torch_compat.recompile_limits()) == {"recompile_limit", "accumulated_recompile_limit"}
        with torch._dynamo.config.patch(recompile_limit=3, accumulated_recompile_limit=5):
            assert torch_compat.recompile_limits() == {"recompile_limit": 3, "accumulated_recompile_limit": 5}
    with stands("torch._dynamo.config._config", "recompile_limits", use):
        assert torch_compat.recompile_limits()["recompile_limit"] == torch_compat.VARIANTS


@pytest.mark.parametrize("takes_limit", [True, False])
def test_a_limit_of_one_function(monkeypatch: pytest.MonkeyPatch, takes_limit: bool) -> None:
    """``takes_limit``: as torch 2.13 has it; without, as earlier ones."""
    compile = torch.compile
    if not takes_limit:

        def earlier(model: Any, *, backend: Any, dynamic: bool, fullgraph: bool) -> Any:
            return compile(model, backend=backend, dynamic=dynamic, fullgraph=fullgraph)

        monkeypatch.setattr(torch, "compile", earlier)
    elif "recompile_limit" not in inspect.signature(torch.compile).parameters:
        pytest.skip(f"torch {torch.__version__} takes no limit for one function")
    config: Any = torch._dynamo.config
    moved = stands("torch._dynamo.config.patch", "compile_with_limit", "raise a limit for one function")
    with moved, config.patch(recompile_limit=1):
        limited = torch_compat.compile_with_limit(lambda x: x + 1, kept, fullgraph=True, limit=2)
        for size in (2, 3):
            limited(torch.ones(size))
            assert config.recompile_limit == 1
        with pytest.raises(Exception) as caught:
            limited(torch.ones(4))
        assert torch_compat.exceeds_limit(caught.value)
        assert config.recompile_limit == 1


def kept(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    return module.forward


def test_limit_error() -> None:
    use = "tell that a limit of Dynamo's stopped a generation"
    with stands("torch._dynamo.exc.FailOnRecompileLimitHit", "exceeds_limit", use):
        assert torch_compat.exceeds_limit(torch._dynamo.exc.FailOnRecompileLimitHit("one more"))
        assert not torch_compat.exceeds_limit(RuntimeError("another"))


def test_capture_error() -> None:
    with stands("torch._dynamo.exc.Unsupported", "unsupported", "tell a block that breaks its graph"):

        def broken(x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return x + 1

        with pytest.raises(Exception) as caught:
            torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(2))
        assert torch_compat.unsupported(caught.value)
        assert not torch_compat.unsupported(RuntimeError("another"))


@pytest.mark.parametrize(
    "name", ["torch._dynamo.variables.misc.NumpyVariable", "torch._dynamo.variables.ConstantVariable"]
)
def test_numpy_of_integers_is_an_integer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torch._dynamo.variables.misc import NumpyVariable

    def cut(x: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
        start = np.sum([a * b for a, b in sizes])
        assert start + 2 <= x.shape[1]
        return x[:, start : start + 2]

    # What another test may have installed is taken off, and given back afterwards.
    monkeypatch.setattr(NumpyVariable, "call_function", inspect.unwrap(NumpyVariable.call_function))
    with stands(name, "fold_numpy", "trace sums of sizes that a model makes with NumPy"):
        active = [True]
        torch_compat.fold_numpy(lambda: active[0])
        once = NumpyVariable.call_function
        torch_compat.fold_numpy(lambda: False)
        assert NumpyVariable.call_function is once
        x, sizes = torch.arange(18.0).view(2, 9), ((2, 1),)
        found = torch.compile(cut, backend="eager", fullgraph=True)(x, sizes)
        torch.testing.assert_close(found, x[:, 2:4])
        torch._dynamo.reset()
        active[0] = False
        with pytest.raises(Exception) as caught:
            torch.compile(cut, backend="eager", fullgraph=True)(x, sizes)
        assert torch_compat.unsupported(caught.value)


def test_dynamo_source() -> None:
    found: list[str] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        found.extend(torch_compat.dynamo_source(node) for node in module.graph.find_nodes(op="placeholder"))
        return module.forward

    with stands("torch.fx.Node._dynamo_source", "dynamo_source", "tell a recorded graph's weights from its inputs"):
        torch.compile(lambda x, y: x + y, backend=backend)(torch.ones(2), torch.ones(2))
        assert found == ["L['x']", "L['y']"]
        node = fx.Graph().placeholder("z")
        node._dynamo_source = type("Source", (), {"name": lambda self: "L['z']"})()  # type: ignore[attr-defined]
        assert torch_compat.dynamo_source(node) == "L['z']"


def test_compiled_modules() -> None:
    module = nn.Linear(2, 2)
    assert not torch_compat.is_compiled(module)
    use = "refuse a model that torch.compile has wrapped already"
    with stands("torch._dynamo.eval_frame.OptimizedModule", "is_compiled", use):
        assert torch_compat.is_compiled(torch.compile(module, backend="eager"))  # type: ignore[arg-type]
        assert not torch_compat.is_compiled(module)
    with stands("torch.nn.Module._compiled_call_impl", "is_compiled", use):
        module.compile(backend="eager")
        assert torch_compat.is_compiled(module)


@pytest.fixture
def unhooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give torch's wrapper back after the test."""
    monkeypatch.setattr(OptimizedModule, "__init__", OptimizedModule.__init__)


@pytest.mark.usefixtures("unhooked")
def test_wrapping_tells_module_backend_and_options() -> None:
    seen: list[tuple[Any, ...]] = []
    use = "attach when torch.compile wraps a model"
    with stands("torch._dynamo.eval_frame.OptimizedModule", "call_before_wrapping", use):
        torch_compat.call_before_wrapping(lambda *given: seen.append(given))
        module = nn.Linear(2, 2)
        torch.compile(module, backend=kept, options={"a": 1})
        torch.compile(module, backend=kept, mode="quick")
        torch.compile(lambda x: x, backend=kept)  # a function has no wrapper module
        torch._dynamo.optimize(kept)(module)
    with stands("_torchdynamo_orig_backend", "call_before_wrapping", "find our backend below Dynamo's wrappers"):
        assert seen == [(module, kept, {"options": {"a": 1}}), (module, kept, {"mode": "quick"}), (module, kept, {})]


@pytest.mark.usefixtures("unhooked")
def test_a_wrapper_that_takes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook would never be called, and ``torch.compile`` would do nothing without a word."""

    def other(self: object, module: nn.Module, context: object, extra: object) -> None:
        raise AssertionError("never built")

    monkeypatch.setattr(OptimizedModule, "__init__", other)
    with pytest.raises(CaptureError, match=r"must build OptimizedModule from \(mod, dynamo_ctx\)"):
        torch_compat.call_before_wrapping(lambda *given: None)
    assert OptimizedModule.__init__ is other  # type: ignore[comparison-overlap]


@pytest.mark.usefixtures("unhooked")
def test_a_wrapper_that_does_not_hold_the_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OptimizedModule.__init__
    monkeypatch.setattr(torch_compat, "_backend_of", lambda context: (context, {}))
    with pytest.raises(CaptureError, match="got a wrapper that does not hold the backend where those do"):
        torch_compat.call_before_wrapping(lambda *given: None)
    assert OptimizedModule.__init__ is own


def traced() -> tuple[fx.GraphModule, list[Tensor]]:
    def forward(x: Tensor) -> tuple[Tensor]:
        return (torch.sin(x) * 2,)

    inputs = [torch.ones(3)]
    return torch.fx.experimental.proxy_tensor.make_fx(forward)(*inputs), inputs


def test_custom_passes_and_compile_fx() -> None:
    use = "put our version into the key of Inductor's cache beside the user's own pass"
    ran: list[fx.Graph] = []
    with stands("torch._inductor.custom_graph_pass", "graph_pass_class", use):
        base, aware = torch_compat.graph_pass_class(), torch_compat.graph_pass_class(aware=True)
        assert issubclass(aware, base) and callable(base.uuid)  # type: ignore[attr-defined]

        class Noted(base):  # type: ignore[misc,valid-type]
            def __call__(self, graph: fx.Graph) -> None:
                ran.append(graph)

            def uuid(self) -> str:
                return "noted"

    with stands("torch._inductor.config.post_grad_custom_post_pass", "user_post_passes", use):
        from torch._inductor import config

        assert torch_compat.user_post_passes() == ()
        noted = Noted()
        with config.patch(post_grad_custom_post_pass=noted):
            assert torch_compat.user_post_passes() == (noted,)
        with config.patch(post_grad_custom_post_pass=[noted, noted]):
            assert torch_compat.user_post_passes() == (noted, noted)
    with stands("torch._inductor.compile_fx.compile_fx", "compile_graph", "compile a rewritten graph with Inductor"):
        module, inputs = traced()
        with torch.no_grad():
            (out,) = torch_compat.compile_graph(module, inputs, noted)(*inputs)
        torch.testing.assert_close(out, torch.sin(inputs[0]) * 2)
        assert len(ran) == 1


def test_inductor_settings() -> None:
    with stands("torch._inductor.config.get_config_copy", "inductor_settings", "set only what a version of torch has"):
        assert torch_compat.inductor_settings()["aot_inductor.package"] in (True, False)


def test_fake_mode() -> None:
    with stands("torch._subclasses.fake_tensor.FakeTensorMode", "fake_mode", "count FLOPs of a graph"):
        real = torch.ones(3, 4)
        with torch_compat.fake_mode():
            out = torch.ones(2, 3) @ real
        assert out.shape == (2, 4) and type(out).__name__ == "FakeTensor"


def test_examples_of_a_program() -> None:
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    with stands("torch.export.ExportedProgram._example_inputs", "without_examples", "save programs without values"):
        given = exported.example_inputs
        with pytest.raises(KeyError), torch_compat.without_examples(exported):
            assert exported.example_inputs is None
            raise KeyError
        assert exported.example_inputs is given is not None


def test_aot_compile_and_package() -> None:
    """``tests/export/test_aoti.py`` runs what they make."""
    with stands("torch._inductor.aot_compile", "compile_files", "compile the programs of an artefact"):
        assert list(inspect.signature(torch._inductor.aot_compile).parameters)[:3] == ["gm", "args", "kwargs"]
        assert "options" in inspect.signature(torch._inductor.aot_compile).parameters
    with stands("torch._inductor.package.package.package_aoti", "package_files", "pack a compiled program"):
        from torch._inductor.package.package import package_aoti

        assert list(inspect.signature(package_aoti).parameters)[:2] == ["archive_file", "aoti_files"]


def test_assert_metadata() -> None:
    with stands("torch.ops.aten._assert_tensor_metadata", "ASSERT_METADATA", "know an op that computes nothing"):
        assert str(torch.ops.aten._assert_tensor_metadata.default) == torch_compat.ASSERT_METADATA
