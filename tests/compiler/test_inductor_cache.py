"""What Inductor's cache key knows of sparvar, and that a user's own pass is respected."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.utils import counters
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomInferenceAwareGraphPass

from sparvar.compiler.compiled_sites import inner_compile
from sparvar.compiler.inductor_cache import CONTRACTS, contracts_digest, post_pass
from tests.architecture import checks

ROOT = Path(__file__).resolve().parents[2]
ONES = torch.ones(3)


class Noted(CustomGraphPass):
    """Notes the graphs it is given."""

    def __init__(self, name: object = "noted") -> None:
        self.name, self.seen = name, []  # type: ignore[var-annotated]

    def __call__(self, graph: fx.Graph) -> None:
        self.seen.append(graph)

    def uuid(self) -> object:
        return self.name


class Told(CustomInferenceAwareGraphPass):
    """Notes whether it was told that nothing needs gradients."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __call__(self, graph: fx.Graph, is_inference: bool) -> None:
        self.seen.append(is_inference)

    def uuid(self) -> str:
        return "told"


def compiled(factor: float) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function that the inner compiler compiles at its first call, and what it must give for ones."""
    torch._dynamo.reset()
    backend = partial(inner_compile, inner="inductor")
    return torch.compile(lambda x: torch.sin(x) * factor, backend=backend, dynamic=False), torch.sin(ONES) * factor


def run(factor: float) -> None:
    with torch.no_grad():
        function, expected = compiled(factor)
        torch.testing.assert_close(function(ONES), expected)


@pytest.fixture
def factor() -> float:
    """A constant that no graph in the cache on disk has."""
    return 1 + secrets.randbelow(2**40) / 2**40


def test_every_module_that_defines_an_op_is_in_the_key() -> None:
    missing = sorted(checks.op_modules(ROOT) - set(CONTRACTS))
    assert not missing, f"add {', '.join(missing)} to CONTRACTS of sparvar/compiler/inductor_cache.py"
    assert list(CONTRACTS) == sorted(set(CONTRACTS))
    assert [name for name in CONTRACTS if find_spec(name) is None] == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\n@torch.library.custom_op('sparvar::f', mutates_args=())\ndef f(): ...",
        "import torch\ntorch.library.register_fake('sparvar::f', f)",
        "from sparvar.kernels.common.library import define\ndefine('f() -> ()', f, f)",
    ],
)
def test_a_module_that_defines_an_op_is_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sparvar" / "passes" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.with_name("b.py").write_text("import torch\ntorch.ops.sparvar.f()")
    assert checks.op_modules(tmp_path) == {"sparvar.passes.a"}


def test_the_key_changes_with_a_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    own = post_pass().uuid()
    contracts_digest.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "library.py" else b""))
    changed = post_pass().uuid()
    contracts_digest.cache_clear()
    assert own[0].startswith("sparvar-") and changed != own


def test_a_users_pass_runs_and_is_part_of_the_key(factor: float) -> None:
    first, second = Noted("first"), Noted("second")
    counters.clear()
    for user, misses in ((None, 1), (first, 2), (second, 3), (first, 3), (None, 3)):
        with config.patch(post_grad_custom_post_pass=user):
            run(factor)
            assert config.post_grad_custom_post_pass is user
        assert counters["aot_autograd"]["autograd_cache_miss"] == misses
    assert (len(first.seen), len(second.seen)) == (1, 1)
    assert config.post_grad_custom_post_pass is None


def test_several_passes_keep_their_order() -> None:
    ran: list[int] = []

    def numbered(number: int) -> Any:
        class Numbered(Noted):
            def __call__(self, graph: fx.Graph) -> None:
                ran.append(number)

        return Numbered(number)

    with config.patch(post_grad_custom_post_pass=[numbered(1), numbered(2)]):
        made = post_pass()
    made(fx.Graph())
    assert ran == [1, 2]
    assert made.uuid()[1:] == (1, 2)


def test_a_pass_without_a_uuid_is_run_and_never_cached(factor: float) -> None:
    ran: list[fx.Graph] = []
    with config.patch(post_grad_custom_post_pass=ran.append):
        assert post_pass().uuid() is None
        for _ in range(2):
            run(factor)
    assert len(ran) == 2


def test_a_pass_that_is_told_of_inference_still_is(factor: float) -> None:
    told, plain = Told(), Noted()
    with config.patch(post_grad_custom_post_pass=[plain, told]):
        run(factor)
    assert told.seen == [True]
    assert len(plain.seen) == 1


def test_an_error_of_a_users_pass_is_not_swallowed(factor: float) -> None:
    def wrong(graph: fx.Graph) -> None:
        raise LookupError("of the user's own")

    with config.patch(post_grad_custom_post_pass=wrong), pytest.raises(Exception, match="of the user's own"):
        run(factor)
    assert config.post_grad_custom_post_pass is None
