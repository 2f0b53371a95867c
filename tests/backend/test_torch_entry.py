"""The entry point that torch loads: what installs the hook on its wrapper, and what does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import torch
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.variables.misc import NumpyVariable
before = OptimizedModule.__init__, NumpyVariable.call_function
def untouched():
    return (OptimizedModule.__init__, NumpyVariable.call_function) == before
from tests.tiny import dense_changes, generate, tiny_model, tiny_plan
"""
WITHOUT = """
import sparvar, sparvar.backend
assert untouched()
model = tiny_model((1, 2, 3), depth=1)
expected = generate(model)
sparvar.compile(model, tiny_plan(model, **dense_changes(1)), inner="eager")
assert torch.equal(generate(model), expected)
assert sparvar.attachment_of(model).generations == 1
assert "sparvar.torch_entry" not in __import__("sys").modules
assert untouched()
"""
WITH = """
import sparvar
model = tiny_model((1, 2, 3), depth=1)
expected = generate(model)
options = {"plan": tiny_plan(model, **dense_changes(1)), "inner": "eager"}
compiled = torch.compile(model, backend="sparvar", options=options)
assert OptimizedModule.__init__ is not before[0] and NumpyVariable.call_function is before[1]
assert torch.equal(generate(compiled), expected)
assert sparvar.attachment_of(compiled).generations == 1
assert sparvar.attachment_of(compiled) is sparvar.attachment_of(model)
sparvar.detach(compiled)
assert sparvar.attachment_of(model) is None
import sparvar.torch_entry
again = torch.compile(model, backend=sparvar.torch_entry.sparvar_backend, options=options)
assert sparvar.attachment_of(again) is not None
"""


def entry_point() -> str:
    """What pyproject.toml names for torch."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'entry-points\.torch_dynamo_backends\]\nsparvar = "([^"]+)"', text)
    assert found is not None
    return found[1]


def run(code: str, *folders: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def installed(folder: Path, value: str) -> Path:
    """A folder with the metadata of an install whose entry point is ``value``."""
    info = folder / "sparvar-0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sparvar\nVersion: 0.0\n")
    (info / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nsparvar = {value}\n")
    return folder


def test_sparvar_and_its_backend_leave_torch_untouched() -> None:
    run(WITHOUT)


def test_torch_compile_attaches_by_the_entry_point(tmp_path: Path) -> None:
    run(WITH, installed(tmp_path, entry_point()))
