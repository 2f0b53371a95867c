"""Every script of ``examples/`` runs as a user runs it, in a process of its own, on models that take seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparvar.scale_plans import Plan
from tests.conventions import painter, plan_for
from tests.export.small import build_short, short_plan
from tests.tools.conftest import Tiny

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str | Path, place: Path) -> str:
    """What the script prints, started in the folder ``place``."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        env={"OMP_NUM_THREADS": "2", **os.environ, "PYTHONPATH": str(ROOT)},
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.slow
def test_first_image(tiny: Tiny, tmp_path: Path) -> None:
    printed = run("first_image", "--weights", tiny.weights, "--plan", tiny.path, "--out", "images", place=tmp_path)
    dense, sparse = (Image.open(tmp_path / "images" / f"{name}.png") for name in ("dense", "sparse"))
    assert dense.size == sparse.size == (512, 512)
    assert dense.tobytes() != sparse.tobytes()
    assert re.search(r"times faster, \d+\.\d dB PSNR", printed)


def test_your_own_model(tmp_path: Path) -> None:
    printed = run("your_own_model", place=tmp_path)
    assert "9 graphs serve all layers" in printed
    assert re.search(r"taken  blocks\.3 +csla .* sparse at scales 5, 6", printed)
    found = re.search(r"relative difference of the outputs: ([\d.]+)", printed)
    assert found is not None and 0 < float(found[1]) < 0.05


def test_infinity(tmp_path: Path) -> None:
    plan_for(painter(cross=True, numpy=True)).save(tmp_path / "plan.json")
    checkpoints = ("--model", "model.pth", "--vae", "vae.pth", "--text", "flan-t5-xl")
    where = ("--plan", tmp_path / "plan.json", "--out", tmp_path / "cat.png", "--inner", "eager")
    checkout = Path(__file__).parent / "infinity_checkout"
    printed = run("infinity", *checkpoints, *where, "a cat in a spacesuit", place=checkout)
    assert re.search(r"taken  blocks\.1\.sa +cs4a", printed)
    assert Image.open(tmp_path / "cat.png").size == (6, 6)


@pytest.mark.slow
def test_calibrate(tmp_path: Path) -> None:
    printed = run("calibrate", "--model", "tests.export.small:build", "--min-psnr", "3", place=tmp_path)
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.provenance.calibrated
    assert plan.measured["psnr_db"] >= 3
    assert plan.digest[:19] in printed


@pytest.mark.slow
def test_export_and_run(tmp_path: Path) -> None:
    """As ONNX, whose programs are made in seconds; `tests/export` makes AOTInductor's."""
    short_plan(build_short()).save(tmp_path / "plan.json")
    model = ("--model", "tests.export.small:build_short", "--plan", "plan.json", "--out", "small", "--format", "onnx")
    printed = run("export_and_run", *model, place=tmp_path)
    assert "an image of 16x16 pixels" in printed
    assert printed.endswith("as it was made\n")
    assert (tmp_path / "small" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["SparVAR", "FastVAR", "SparseVAR", "ToMe", "SkipVAR", "sparvar's plan"])
def test_compare_methods(method: str, compared: str) -> None:
    assert re.search(rf"{method}.* s +\d+\.\d+ times faster +\d+\.\d dB", compared)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run("compare_methods", "--size", "64", place=tmp_path_factory.mktemp("compared"))
