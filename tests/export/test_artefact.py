"""An artefact as whoever receives it uses it: commands and three lines of Python, on the least model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sparvar
from sparvar.artefact import load, pack, verify
from sparvar.artefact.session import Artefact
from sparvar.errors import SparvarWarning
from sparvar.export import export_artefact
from tests.export.conftest import Exported, command, environment
from tests.export.small import least, least_plan

pytestmark = pytest.mark.aot

SAME = 1e-4
"""Two batch sizes, or two compilers, may differ in the last digits of an image."""


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> Artefact:
    return load(exported.folder)


@pytest.fixture(scope="module")
def packed(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "small.sparvar"
    pack(exported.folder, file)
    return file


def close(image: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(image, wanted, rtol=0, atol=SAME)


def test_a_killed_export_leaves_no_half_and_is_gone_on_with(exported: Exported) -> None:
    assert exported.left_by_kill == [".small.partial"]
    assert exported.compiled_before_kill >= 2
    # Compiling processes outlive their parent until the program in work is whole.
    assert exported.first_compiled > exported.compiled_before_kill
    assert not (exported.folder.parent / ".small.partial").exists()


def test_progress_says_what_is_done_and_how_long_it_takes(exported: Exported) -> None:
    assert exported.lines[0].endswith("recording the blocks in one dense generation")
    assert any("min left" in line or "s left" in line for line in exported.lines)
    assert "MiB in" in exported.lines[-1]


def test_the_manifest_states_memory(loaded: Artefact) -> None:
    memory = loaded.manifest.memory
    assert set(memory) == {"weights", "constants", "buffers", "workspace"} and all(memory.values())
    per_layer = 2 * 4 * 2 * sum(side * side for side in (1, 2, 4)) * 64 * 4  # k and v, rows, heads, keys, head_dim
    assert memory["buffers"] == 2 * per_layer
    programs = loaded.format.programs.values()
    assert max(each.workspace for each in programs) == memory["workspace"]


def test_images_are_those_of_the_in_process_path(loaded: Artefact) -> None:
    model = sparvar.compile(least(), plan=least_plan(), inner="eager")
    close(loaded.generate(["sea", "mountain"], seed=5), model.generate(["sea", "mountain"], seed=5))
    close(
        loaded.generate(["sea", 3], seed=9, cfg=4.0, temperature=0.7),
        model.generate(["sea", 3], seed=9, cfg=4.0, temperature=0.7),
    )


def test_requests_of_any_size(loaded: Artefact) -> None:
    labels = ["sea", "mountain", 4, "desert", "sea"]
    five = loaded.generate(labels, seed=20)
    assert five.shape == (5, 3, 16, 16) and five.dtype == torch.float32
    for number in range(5):
        close(five[number], loaded.generate([labels[number]], seed=20 + number)[0])
    assert not torch.allclose(five[0], five[4], atol=1e-2)  # the same label, another seed


def test_memory_is_made_once(exported: Exported) -> None:
    artefact = load(exported.folder, sessions=2)
    artefact.warm_up()
    with artefact.session() as one, artefact.session() as other:
        before = [value.data_ptr() for each in (one, other) for value in each._values.values()]
    artefact.generate(["sea"] * 4, seed=1)
    with artefact.session() as one, artefact.session() as other:
        after = [value.data_ptr() for each in (one, other) for value in each._values.values()]
        shared = [name for name in one._values if one._values[name].data_ptr() == other._values[name].data_ptr()]
    assert sorted(before) == sorted(after)
    assert shared and all(name.startswith(("weights/", "constants/")) for name in shared)


@pytest.mark.parametrize("sessions", [1, 2])
def test_threads_at_once(exported: Exported, loaded: Artefact, sessions: int) -> None:
    artefact = load(exported.folder, sessions=sessions)
    wanted = {seed: loaded.generate(["sea", "city"], seed=seed) for seed in range(6)}
    found: dict[int, torch.Tensor] = {}

    def draw(seeds: range) -> None:
        for seed in seeds:
            found[seed] = artefact.generate(["sea", "city"], seed=seed)

    threads = [threading.Thread(target=draw, args=(range(part, 6, 3),)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == set(wanted)
    for seed, image in wanted.items():
        assert torch.equal(found[seed], image)


def test_verify(exported: Exported) -> None:
    report = verify(exported.folder)
    assert report.ok and report.problems == () and report.psnr_db >= 45
    assert 0 < report.workspace <= report.stated_workspace + (1 << 20)
    assert 0 < report.resident < report.stated_workspace + (16 << 20)
    (problem,) = dataclasses.replace(report, resident=64 << 20).problems
    assert problem.startswith("a generation: must need at most") and problem.endswith("got 64.0 MiB resident")
    assert report.programs["scale03-csla"].runs == 1 and report.programs["scale02-leave"].seconds > 0


def test_verify_and_inspect_as_commands(exported: Exported, packed: Path) -> None:
    done = command("verify", str(exported.folder))
    assert done.returncode == 0, done.stderr
    assert "match their checksums" in done.stdout and "scale03-cs4a" in done.stdout and not done.stderr
    found = json.loads(command("verify", str(packed), "--json").stdout)
    assert found["ok"] and found["format"] == "aoti"
    shown = command("inspect", str(exported.folder)).stdout
    assert "2 images of 16x16x3 a run; licence of the weights: CC0" in shown and "4L" in shown
    rows = json.loads(command("inspect", str(packed), "--json").stdout)["formats"]["aoti"]["scales"]
    assert [row["kinds"] for row in rows[1:]] == [["decide", "dense"], ["cs4a", "csla"], ["cs4a", "csla"]]
    assert rows[-1]["flops"] < rows[-1]["dense_flops"] and rows[-1]["bytes"] > 0


def test_run_as_a_command(exported: Exported, packed: Path, tmp_path: Path, loaded: Artefact) -> None:
    words = ["--label", "mountain", "--label", "3", "--label", "sea", "--seed", "7"]
    done = command("run", str(exported.folder), *words, "--out", str(tmp_path / "image.png"))
    assert done.returncode == 0, done.stderr
    names = [f"image-{number}.png" for number in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and names[0] in done.stdout
    wanted = loaded.generate(["mountain", 3, "sea"], seed=7)
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / names[2])))
    assert ((wanted[2] * 255).permute(1, 2, 0) - pixels).abs().max() <= 1
    for out, given in (("one.png", []), ("low.png", ["--low-memory"])):
        done = command("run", str(packed), "--label", "sea", *given, "--out", str(tmp_path / out))
        assert done.returncode == 0 and (tmp_path / out).is_file(), done.stderr
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "low.png").read_bytes()


def test_it_runs_where_neither_the_model_nor_the_compiler_is(exported: Exported, tmp_path: Path) -> None:
    code = """
import sys
BLOCKED = ("sparvar.passes", "sparvar.zoo", "sparvar.compiler", "sparvar.models", "sparvar.calibrate",
           "sparvar.export", "sparvar.backend", "sparvar.runtime",
           "sparvar.scale_plans", "tests", "pydantic", "safetensors", "networkx", "PIL", "rich", "typer", "onnxruntime")
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in BLOCKED):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
import sparvar
image = sparvar.load(sys.argv[1], trust=True).generate(["sea"], seed=7)
print(tuple(image.shape), sorted(name for name in sys.modules if name.startswith("torch._inductor"))[:1])
"""
    cache = tmp_path / "cache"  # without kernels that were built here
    changes = {"SPARVAR_CACHE_DIR": str(cache), "SPARVAR_CXX": "/nonexistent", "CXX": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, str(exported.folder)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 3, 16, 16) []\n"
    assert not list(cache.rglob("*.so"))


def test_programs_whose_sampled_bits_flip(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that compute in 16 bits: their own image is not to be had to 45 dB, and verify must not ask for it."""
    from sparvar.export import builder as exporting
    from sparvar.export.formats import aoti_format

    packages = exported.folder / "aoti"
    monkeypatch.setattr(
        aoti_format, "compile_all", lambda programs, *_: {name: packages / f"{name}.pt2" for name in programs}
    )
    traced = exporting.run_traced
    monkeypatch.setattr(exporting, "run_traced", lambda *arguments: 0.9 * traced(*arguments))
    # Of programs in fp32 another image is a fault, and verify says so.
    export_artefact(least(), least_plan(), tmp_path / "fault", images=2)
    assert "the golden image" in verify(tmp_path / "fault").problems[0]
    monkeypatch.setattr(exporting, "rounds", lambda program: True)
    target = tmp_path / "artefact"
    with pytest.warns(SparvarWarning, match="dB of the model's own golden image"):
        export_artefact(least(), least_plan(), target, images=2)
    report = verify(target)
    assert report.ok and report.psnr_db > 60, report.problems
    assert report.model_psnr_db is not None and 10 < report.model_psnr_db < 45
    assert "the programs' own" in command("verify", str(target)).stdout
    assert "The golden image is what the programs drew" in (target / "README.md").read_text()
    assert verify(exported.folder).model_psnr_db is None
