"""The shape of the package: imports point one way, ``__init__`` files re-export, one module reads the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture import checks, shape

ROOT = Path(__file__).resolve().parents[2]
CHECKS = [
    checks.import_problems,
    checks.init_problems,
    checks.environment_problems,
    checks.length_problems,
    checks.private_name_problems,
    shape.circle_problems,
    shape.folder_problems,
    shape.parameter_problems,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_tree_has_no(check: Callable[[Path], list[str]]) -> None:
    problems = check(ROOT)
    assert not problems, "\n" + "\n".join(problems)


def test_the_tree_is_seen() -> None:
    assert {"sparvar", "sparvar.errors", "sparvar.scale_plans", "sparvar.scale_plans.plan"} <= set(checks.modules(ROOT))
    assert set(checks.WHY) == set(checks.ALLOWED)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "sparvar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("scale_plans/a.py", "import sparvar.kernels.b", "got sparvar.kernels.b; plans are pure data"),
        ("kernels/b.py", "from sparvar.scale_plans import Plan", "got sparvar.scale_plans; kernels know tensors"),
        ("kernels/b.py", "def f():\n    from ..scale_plans import a", "b.py:2: sparvar.kernels may import"),
        ("kernels/__init__.py", "from ..scale_plans import a", "got sparvar.scale_plans.a; kernels know"),
        ("runtime/c.py", "from sparvar import passes", "got sparvar.passes; the runtime runs plans"),
        ("passes/d.py", "from sparvar.runtime.generation import current", "state of a generation belongs to runtime/"),
        ("passes/d.py", "import sparvar", "got sparvar; passes rewrite graphs"),
        ("tools/e.py", "from sparvar.kernels.common.checks import x", "got sparvar.kernels.common.checks; tools use"),
        ("tools/e.py", "from sparvar.backend import x", "got sparvar.backend; tools use the public API"),
        ("zoo/f.py", "from sparvar.errors import SparvarError", "knows nothing of sparvar: move the code to tools/"),
        ("errors.py", "from sparvar.env import x", "sparvar.errors may import nothing of sparvar, got sparvar.env"),
        ("backend.py", "from sparvar import compile", "only tools may import the whole package; name the module"),
        (
            "artefact/h.py",
            "def f():\n    import sparvar.passes.x",
            "what makes them belongs to export/",
        ),
        (
            "artefact/h.py",
            "from sparvar.kernels.common.native import x",
            "got sparvar.kernels.common.native",
        ),
        ("export/i.py", "from sparvar.tools.cli import main", "what a user types belongs to tools/"),
        ("tools/e.py", "from sparvar.export.programs import x", "got sparvar.export.programs; tools use the public"),
        ("novel/g.py", "", "sparvar.novel.g is in no part with a rule; add its folder to ALLOWED"),
        ("novel/__init__.py", "", "sparvar.novel is in no part with a rule"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, text: str, says: str) -> None:
    files = {"passes/__init__.py": "", "scale_plans/a.py": "", "scale_plans/__init__.py": "", name: text}
    (problem,) = checks.import_problems(tree(tmp_path, files))
    assert says in problem
    assert problem.startswith(f"sparvar/{name}")


def test_right_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": LAZY.format("from sparvar.explain import explain", "'explain': 'sparvar.explain'"),
        "explain.py": "",
        "backend.py": "from sparvar.passes import x\nfrom sparvar.runtime.generation import y\nimport torch, os.path",
        "passes/a.py": "from . import b\nfrom sparvar.scale_plans.plan import Plan\nimport sparvar.kernels",
        "passes/b.py": "from sparvar.errors import x",
        "runtime/session.py": "from sparvar import kernels",
        "kernels/__init__.py": "from sparvar.kernels.op import f",
        "kernels/op.py": "import sparvary",
        "tools/cli.py": "import sparvar\nfrom sparvar import explain, zoo\nfrom sparvar.kernels import f",
        "zoo/__init__.py": "",
        "zoo/model.py": "from .parts import x",
    }
    assert checks.import_problems(tree(tmp_path, files)) == []


@pytest.mark.parametrize("text", ["x = 1", "def f():\n    pass", "if True:\n    import os", '"""Doc."""\n"more"'])
def test_code_in_an_init_is_found(tmp_path: Path, text: str) -> None:
    (problem,) = checks.init_problems(tree(tmp_path, {"tools/__init__.py": text}))
    assert "must only re-export" in problem


LAZY = """from typing import TYPE_CHECKING
from sparvar.lazy import exports
if TYPE_CHECKING:
    {}
else:
    __getattr__, __dir__ = exports(__name__, {{{}}})
"""
IMPORT = "from sparvar.a import b"


def test_only_the_top_level_is_lazy(tmp_path: Path) -> None:
    text = LAZY.format(IMPORT, "'b': 'sparvar.a'")
    assert checks.init_problems(tree(tmp_path / "top", {"__init__.py": text})) == []
    (problem,) = checks.init_problems(tree(tmp_path / "low", {"tools/__init__.py": text}))
    assert problem.startswith("sparvar/tools/__init__.py:3")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (LAZY.format(IMPORT, ""), "a table that differs from the imports for type checkers in b"),
        (LAZY.format(IMPORT, "'b': 'sparvar.c'"), "a table that differs from the imports for type checkers in b"),
        (LAZY.format(IMPORT, "'b': 'sparvar.a', 'c': 'sparvar.a'"), "in c"),
        (LAZY.format("x = 1", ""), "got Assign for type checkers"),
        (LAZY.format(IMPORT, "'b': 'sparvar.a'").replace("exports(", "other("), "got another assignment"),
        (LAZY.format(IMPORT, "'b': 'sparvar.a'").replace("__dir__", "dir"), "got another assignment"),
        (LAZY.format(IMPORT, "'b': 'sparvar.a'") + "    x = 1", "got another branch than one assignment"),
        (f"if TYPE_CHECKING:\n    {IMPORT}", "got another branch than one assignment"),
        ("def __getattr__(name):\n    pass", "got FunctionDef"),
        ("if True:\n    import os", "got If"),
    ],
)
def test_another_lazy_form_is_found(tmp_path: Path, text: str, got: str) -> None:
    (problem,) = checks.init_problems(tree(tmp_path, {"__init__.py": text}))
    assert got in problem
    assert "__getattr__, __dir__ = exports(__name__, {...})" in problem


def test_only_the_top_level_has_a_version(tmp_path: Path) -> None:
    text = '"""Doc."""\n\nfrom __future__ import annotations\n\n__version__ = "1"\n__all__ = ["a"]\n'
    assert checks.init_problems(tree(tmp_path / "top", {"__init__.py": text})) == []
    assert len(checks.init_problems(tree(tmp_path / "low", {"tools/__init__.py": text}))) == 1


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"])
def test_reading_the_environment_is_found(tmp_path: Path, text: str) -> None:
    (problem,) = checks.environment_problems(tree(tmp_path, {"tools/a.py": text, "env.py": text}))
    assert problem.startswith("sparvar/tools/a.py:")


def test_a_long_file_is_found(tmp_path: Path) -> None:
    line = "x = 1\n"
    files = {"a.py": line * checks.MAX_LINES, "b.py": line * (checks.MAX_LINES - 1)}
    (problem,) = checks.length_problems(tree(tmp_path, files))
    assert problem.startswith("sparvar/a.py: must have fewer than 450 lines, got 450")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("import torch._dynamo as dynamo\ndynamo.reset()", "torch._dynamo"),
        ("from torch._C import _aoti", "torch._C._aoti"),
        ("def f():\n    from torch import _guards", "torch._guards"),
        ("from triton.experimental.gluon._runtime import X", "triton.experimental.gluon._runtime.X"),
        ("import torch\ntorch._assert_async(x)", "torch._assert_async"),
        ("from torch import ops\nops.aten._to_copy", "torch.ops.aten._to_copy"),
        ("import torch.nn.functional as F\nF._x", "torch.nn.functional._x"),
        ("class A:\n    def f(self):\n        return self.torch._C.x", "self.torch._C.x"),
        ("module._compiled_call_impl", "module._compiled_call_impl"),
        ("f()._cdata", "?._cdata"),
        ("getattr(model, '_orig_mod', model)", "_orig_mod"),
        ("import importlib\nimportlib.import_module('torch._inductor.config')", "torch._inductor.config"),
    ],
)
def test_a_private_name_of_torch_is_found(tmp_path: Path, text: str, name: str) -> None:
    compat = {f"{module.removeprefix('sparvar.').replace('.', '/')}.py": text for module in checks.COMPATIBILITY}
    problems = checks.private_name_problems(tree(tmp_path, {"runtime/a.py": text, **compat}))
    assert problems
    assert all(problem.startswith("sparvar/runtime/a.py:") for problem in problems)
    assert f": {name} is a private name of torch or triton" in problems[0]


def test_private_names_of_our_own_pass(tmp_path: Path) -> None:
    text = """import torch
from sparvar.version import __version__
_cache = {}
class A:
    def __init__(self, other):
        self._x = other._x
        self.old = torch.__version__, other.pair._replace(a=1), getattr(other, "_x"), other.token._sparvar_buffer
def _f(other):
    return other._y
"""
    files = {"runtime/a.py": text, "runtime/b.py": "class B:\n    _y: int = 3"}
    assert checks.private_name_problems(tree(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("text", "more"),
    [("from sparvar.kernels import b", ""), ("def f():\n    import sparvar.kernels.b", ""), ("", "TYPE_CHECKING")],
    ids=["at the top", "in a function", "for type checkers"],
)
def test_a_circle_is_found(tmp_path: Path, text: str, more: str) -> None:
    if more:
        text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sparvar.kernels.b import x"
    files = {"kernels/__init__.py": "", "kernels/a.py": text, "kernels/b.py": "from sparvar.kernels.a import y"}
    (problem,) = shape.circle_problems(tree(tmp_path, files))
    assert "got sparvar.kernels.a, sparvar.kernels.b" in problem
    files["kernels/a.py"] = ""
    assert shape.circle_problems(tree(tmp_path, files)) == []


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    files = {f"kernels/m{number}.py": "" for number in range(shape.MAX_FILES + 1)}
    (problem,) = shape.folder_problems(tree(tmp_path, files))
    assert problem.startswith("sparvar/kernels: must hold at most 16 Python files, got 17")


def test_many_parameters_are_found(tmp_path: Path) -> None:
    names = ", ".join(f"p{number}" for number in range(shape.MAX_PARAMETERS + 1))
    text = (
        f"def f(self, {names[4:]}): ...\ndef g(*, {names}): ...\n@triton.jit\ndef h({names}): ...\ndef _i({names}): ..."
    )
    problems = shape.parameter_problems(tree(tmp_path, {"kernels/a.py": text}))
    assert len(problems) == 2 and all("must take at most 8 parameters, got 9" in problem for problem in problems)
    assert "kernels.a.g" in problems[0] and "kernels.a._i" in problems[1]
