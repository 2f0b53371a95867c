"""A machine without the model, pydantic or torch can import what reads artefacts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artefact.factory import artefact

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""
NOTHING = (
    "torch",
    "numpy",
    "pydantic",
    "networkx",
    "safetensors",
    "PIL",
    "onnxruntime",
    "triton",
    "typer",
    "rich",
    "filelock",
)
MODULES = ["", ".manifest.schema", ".manifest.consistency", ".files", ".tensors", ".execution.noise", ".trust"]


def run(names: tuple[str, ...], code: str, *words: str) -> str:
    command = [sys.executable, "-c", BLOCKED.format(names=names) + code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_with_nothing_but_python(module: str) -> None:
    code = f"import sparvar.artefact{module}\nprint(*(name for name in sys.modules if name in {NOTHING!r}))"
    assert run(NOTHING, code) == "\n"


def test_an_artefact_is_read_and_checked_with_nothing_but_python(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    code = """
from sparvar.artefact import TensorFile, check_files, pack, read_manifest, unpack
folder = sys.argv[1]
manifest, digest = read_manifest(folder)
check_files(folder, manifest)
print(manifest.model.name, TensorFile(folder + "/weights.safetensors").spec("embed"))
"""
    assert run(NOTHING, code, str(tmp_path / "a")) == "small float32 [4, 3]\n"


def test_tensors_and_noise_without_torch(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    code = """
import json
from sparvar.artefact import NumpyNoiseStream, TensorFile, read_manifest
manifest = read_manifest(sys.argv[1])[0]
print(json.dumps([
    TensorFile(sys.argv[1] + "/weights.safetensors").numpy("b.1.w").tolist(),
    NumpyNoiseStream(manifest.noise, 3, 1).next("noise/1").shape,
]))
"""
    without = tuple(name for name in NOTHING if name != "numpy")
    assert json.loads(run(without, code, str(tmp_path / "a"))) == [[[2.0] * 3] * 3, [1, 2, 2]]


def test_tensors_and_noise_without_numpy(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    code = """
import json
from sparvar.artefact import TensorFile, TorchNoiseStream, read_manifest
manifest = read_manifest(sys.argv[1])[0]
print(json.dumps([
    TensorFile(sys.argv[1] + "/weights.safetensors").torch("b.1.w").tolist(),
    TorchNoiseStream(manifest.noise, 3, 1).next("noise/1").shape,
]))
"""
    without = tuple(name for name in NOTHING if name not in ("torch", "triton"))
    assert json.loads(run(without, code, str(tmp_path / "a"))) == [[[2.0] * 3] * 3, [1, 2, 2]]
