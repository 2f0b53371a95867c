"""`import sparvar` loads next to nothing, and every name is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import sparvar

HEAVY = ("torch", "numpy", "pydantic", "networkx", "safetensors", "PIL", "triton", "typer", "rich")
# A package like ours, with a function and a folder of one name, and a function in a module of its name.
MADE = {
    "__init__.py": """from sparvar.lazy import exports
__getattr__, __dir__ = exports(__name__, {"draw": "made.draw", "tell": "made.tell", "other": "made.parts"})
""",
    "draw/__init__.py": "from made.draw.inner import Pen, draw",
    "draw/inner.py": "class Pen: pass\ndef draw(): return 1",
    "tell.py": "def tell(): return 2",
    "parts.py": "from made.tell import tell\nother = 3",
}
# Every way in which the function and the folder meet; each must work after any other.
USES = {
    "attribute": "import made; assert made.draw() == 1",
    "from the package": "from made import draw; assert draw() == 1",
    "from the folder": "from made.draw import Pen, draw; assert draw() == 1",
    "import of the folder": "import made.draw",
    "import of a module": "import made.draw.inner",
    "from a module": "from made.draw.inner import Pen",
    "by name": "import importlib; assert importlib.import_module('made.draw').Pen",
    "another name": "from made import other; assert other == 3",
    "a module of a function's name": "from made.tell import tell; assert tell() == 2",
    "a submodule": "import made; assert made.parts.other == 3",
    "everything": "import made; assert {'draw', 'tell', 'other', '__name__'} <= set(dir(made))",
}
AFTERWARDS = """
import sys, types
assert type(made.draw) is type(made.tell) is types.FunctionType
assert made.draw is sys.modules["made.draw.inner"].draw
assert Pen is sys.modules["made.draw"].Pen
"""
# The same with the real names, after what brings the folder in first.
REAL = """
import sys, types, sparvar, sparvar.calibrate.api, sparvar.compiler.explain
from sparvar.calibrate import Budget, calibrate
from sparvar.compiler.explain import Explanation, explain
assert type(sparvar.calibrate) is type(sparvar.explain) is types.FunctionType
assert sparvar.calibrate is calibrate is sys.modules["sparvar.calibrate.api"].calibrate
assert sparvar.explain is explain is sys.modules["sparvar.compiler.explain"].explain
assert Budget is sys.modules["sparvar.calibrate"].Budget
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_light() -> None:
    assert run(f"import sys, sparvar; print(*(name for name in sys.modules if name in {HEAVY!r}))") == "\n"


@pytest.mark.parametrize("first", USES)
def test_a_function_and_a_folder_of_one_name(tmp_path: Path, first: str) -> None:
    for name, text in MADE.items():
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run("\n".join([f"import sys; sys.path.insert(0, {str(tmp_path)!r})", USES[first], *USES.values(), AFTERWARDS]))


@pytest.mark.parametrize("first", ["import sparvar; sparvar.calibrate", "from sparvar.calibrate.api import Budget"])
def test_calibrate_is_a_function_and_a_folder(first: str) -> None:
    run(first + REAL)


def test_every_exported_name_is_there() -> None:
    for name in sparvar.__all__:
        value = getattr(sparvar, name)
        assert not isinstance(value, ModuleType), name
        assert name in dir(sparvar)
    assert set(sparvar.__all__) <= set(dir(sparvar))
    found: dict[str, object] = {}
    exec("from sparvar import *", found)
    assert set(sparvar.__all__) <= set(found)


def test_submodules_need_no_import_of_their_own() -> None:
    out = run("import sparvar; print(sparvar.kernels.__name__, sparvar.errors.SparvarError.__name__)")
    assert out == "sparvar.kernels SparvarError\n"


@pytest.mark.parametrize("name", ["nothing", "__wrapped__", "a.b", "_private", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'sparvar' has no attribute {name!r}"):
        getattr(sparvar, name)
    assert not hasattr(sparvar, name)


def test_torch_finds_the_backend_first() -> None:
    code = """
import torch
from torch._dynamo.backends.registry import lookup_backend
backend = lookup_backend("sparvar")
import sparvar, sparvar.torch_entry
assert backend is sparvar.torch_entry.sparvar_backend, backend
assert callable(sparvar.calibrate)
"""
    run(code)


def test_a_name_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparvar, "calibrate", len)
    assert sparvar.calibrate is len
    monkeypatch.undo()
    assert isinstance(sparvar.calibrate, FunctionType)
