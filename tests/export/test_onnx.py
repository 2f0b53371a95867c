"""A whole model as ONNX: the files, and the image in a process without torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import sparvar
from sparvar.artefact import read_manifest, verify
from sparvar.artefact.tensors import TensorFile
from sparvar.errors import CaptureError, OptionError
from sparvar.evaluate.metrics import psnr
from sparvar.export import export_artefact
from sparvar.export.formats import onnx_format
from sparvar.export.formats.onnx_convert import OPSET, convert, means
from sparvar.export.trace import Program, export_graph
from sparvar.progress import Silent
from tests.export.small import build_short, short_plan

pytestmark = pytest.mark.slow

LABELS = ["mountain", "sea"]
SEED = 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact that the command writes, of two images a run."""
    folder = tmp_path_factory.mktemp("onnx")
    short_plan(build_short()).save(folder / "plan.json")
    done = command(
        "export", "tests.export.small:build_short", "--plan", str(folder / "plan.json"), "--out", str(folder / "a"),
        "--format", "onnx", "--batch", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "a"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "sparvar.tools", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


def models(folder: Path) -> dict[str, onnx.ModelProto]:
    found = {path.stem: onnx.load(path, load_external_data=False) for path in sorted(folder.glob("*.onnx"))}
    assert list(found) == ["begin", "decode", "scale01", "scale02", "scale03"]
    return found


def test_every_model_is_checked_plain_and_static(exported: Path) -> None:
    for name, model in models(exported).items():
        onnx.checker.check_model(str(exported / f"{name}.onnx"), full_check=True)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
        assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Scan"}
        for value in (*model.graph.input, *model.graph.output):
            assert all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim), value.name
    ops = {name: {node.op_type for node in model.graph.node} for name, model in models(exported).items()}
    assert "Attention" in ops["scale01"] and {"Attention", "TopK"} <= ops["scale02"]
    assert {"Gather", "Softmax"} <= ops["scale03"]
    assert not any("GatherElements" in found for found in ops.values())


def test_models_say_nothing_of_the_machine_they_were_made_on(exported: Path) -> None:
    here = str(Path(__file__).parents[2]).encode()
    for path in exported.glob("*.onnx"):
        data = path.read_bytes()
        assert here not in data and b".py" not in data, path.name


def test_tensors_are_stored_once_and_models_point_to_them(exported: Path) -> None:
    files = {name: TensorFile(exported / name) for name in ("weights.safetensors", "constants.safetensors")}
    used: set[tuple[str, str]] = set()
    for model in models(exported).values():
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.raw_data) <= onnx_format.SMALL and not tensor.name.startswith("weights/")
                continue
            place = {each.key: each.value for each in tensor.external_data}
            kind, _, name = tensor.name.partition("/")
            if kind in ("weights", "constants"):
                assert place["location"] == f"{kind}.safetensors"
                assert files[place["location"]].span(name) == (int(place["offset"]), int(place["length"]))
                used.add((place["location"], name))
    assert used == {(file, name) for file, tensors in files.items() for name in tensors.names}
    weights = files["weights.safetensors"]
    contents = [weights.numpy(name).tobytes() for name in weights.names]
    assert len(set(contents)) == len(contents)
    assert {f"layers.{layer}.attn.qkv.weight" for layer in range(3)} <= set(weights.names)
    assert sum(map(len, contents)) <= sum(each.nbytes for each in build_short().state_dict().values())


ALONE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pydantic", "safetensors", "onnx", "triton", "networkx"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
import numpy, sparvar
images = sparvar.load(sys.argv[1], format="onnx").generate(["mountain", "sea"], seed=3)
numpy.save(sys.argv[2], images)
"""


@pytest.fixture(scope="module")
def wanted() -> np.ndarray[Any, Any]:
    """The same images in process."""
    model = build_short()
    sparvar.compile(model, short_plan(model), inner="eager")
    return model.generate(LABELS, SEED, cfg=2.0).numpy()


def test_a_process_without_torch_draws_the_images_of_the_in_process_path(
    exported: Path, wanted: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    place = tmp_path / "images.npy"
    done = subprocess.run([sys.executable, "-c", ALONE, str(exported), str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    images = np.load(place)
    assert images.shape == wanted.shape == (2, 3, 16, 16)
    assert psnr(images, wanted) >= 45


def test_the_command_draws_them_too(exported: Path, wanted: np.ndarray[Any, Any], tmp_path: Path) -> None:
    from PIL import Image

    labels = [word for label in LABELS for word in ("--label", label)]
    done = command("run", str(exported), *labels, "--seed", str(SEED), "--out", str(tmp_path / "a.png"))
    assert done.returncode == 0, done.stderr
    assert "(onnx)" in done.stdout
    for number, image in enumerate(wanted, start=1):
        pixels = np.asarray(Image.open(tmp_path / f"a-{number}.png")).transpose(2, 0, 1) / 255
        assert psnr(pixels, image) >= 45


def test_it_verifies_and_states_what_it_needs(exported: Path) -> None:
    report = verify(exported, format="onnx")
    assert report.ok and report.workspace > 0
    assert report.stated_workspace == max(
        each.workspace for each in read_manifest(exported)[0].formats["onnx"].programs.values()
    )
    more = dataclasses.replace(report, workspace=2 * report.stated_workspace + (64 << 20))
    assert "a generation: must need at most" in more.problems[0]
    spec = read_manifest(exported)[0].formats["onnx"]
    assert spec.requires == {"onnxruntime": onnx_format.RUNTIME} and not spec.native_files("onnx")
    programs = json.loads((exported / "manifest.json").read_text())["formats"]["onnx"]["programs"]
    assert programs["scale03"]["flops"] < programs["scale03"]["dense_flops"]


def test_a_missing_package_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_format, "PACKAGES", ("onnx", "onnxscript_that_is_not_there"))
    model = build_short()
    said: list[str] = []

    class Noted(Silent):
        def step(self, text: str, share: float = 0.0) -> None:
            said.append(text)

    with pytest.raises(OptionError, match=r"got no onnxscript_that_is_not_there; pip install 'sparvar\[export\]'"):
        export_artefact(model, short_plan(model), tmp_path / "a", formats=["onnx"], progress=Noted())
    assert not said and not (tmp_path / "a").exists()


class Eigen(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.linalg.eigvalsh(x),)


def test_an_op_without_translation_is_named() -> None:
    program = Program("scale01", 1, "test", export_graph(Eigen(), [torch.eye(3)]), ["x"], ["y"])
    with pytest.raises(CaptureError, match=r"program scale01: must be made of ops that ONNX has.*eigh"):
        convert(program)


@pytest.mark.parametrize(("size", "target"), [(8, 4), (64, 48), (5, 3), (4, 4), (7, 1)])
def test_means_of_an_area(size: int, target: int) -> None:
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    exact = torch.nn.functional.adaptive_avg_pool2d(x, target)
    matrix = means(size, target).double()
    # Entries 1 / n are rounded once, and at most `size` products with them are added up in each axis.
    torch.testing.assert_close(matrix @ x @ matrix.T, exact, rtol=0, atol=2 * 2.0**-24 * float(x.abs().max()))
