"""What an artefact, or its export, refuses, and what it says then."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparvar.artefact import Manifest, load, read_manifest, verify
from sparvar.artefact.manifest.schema import FileSpec
from sparvar.errors import ArtefactError, OptionError
from tests.export.conftest import Exported, command, environment

pytestmark = pytest.mark.aot


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Iterator[Path]:
    """A copy of the artefact, which is known as one made here until its manifest changes."""
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    yield folder


def changed(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write the manifest anew, whole and with the checksums of the files as they are now."""
    manifest = change(read_manifest(folder)[0])
    files = {}
    for name in manifest.files:
        data = (folder / name).read_bytes()
        files[name] = FileSpec(hashlib.sha256(data).hexdigest(), len(data))
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, files=files).dumps())


def with_format(manifest: Manifest, **changes: Any) -> Manifest:
    return dataclasses.replace(manifest, formats={"aoti": dataclasses.replace(manifest.formats["aoti"], **changes)})


def test_a_flipped_byte_in_any_file(copy: Path) -> None:
    files = [path for path in sorted(copy.rglob("*")) if path.is_file()]
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        for place in (len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(ArtefactError):
                load(copy)
        path.write_bytes(data)
    load(copy)


def test_any_file_missing(copy: Path) -> None:
    for name in read_manifest(copy)[0].files:
        (copy / name).rename(copy.parent / "away")
        with pytest.raises(ArtefactError, match="must be there, got no file"):
            load(copy)
        (copy.parent / "away").rename(copy / name)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("torch", "2.0.0", "this machine's torch: must be 2.0.0, which the programs were built for, got 2."),
        ("platform", "linux-mips", "this machine's platform: must be linux-mips"),
        ("kernels", "0" * 24, "this machine's kernels: must be 000"),
        ("cpu", ("avx999",), "this CPU: must have avx999, which the programs were built for"),
    ],
)
def test_another_machine_than_the_programs_were_built_for(copy: Path, name: str, value: Any, says: str) -> None:
    spec = read_manifest(copy)[0].formats["aoti"]
    changed(copy, lambda manifest: with_format(manifest, requires={**spec.requires, name: value}))
    with pytest.raises(ArtefactError) as caught:
        load(copy, trust=True)
    assert says in str(caught.value) and "export the artefact" in str(caught.value)


def test_another_device(copy: Path) -> None:
    with pytest.raises(ArtefactError, match="device: must be cpu, which the programs were built for, got cuda"):
        load(copy, device="cuda")
    changed(copy, lambda manifest: with_format(manifest, device="cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(ArtefactError, match="torch finds no CUDA device"):
            load(copy, trust=True)


def test_graphs_are_for_gpus(copy: Path) -> None:
    with pytest.raises(OptionError, match="graphs: must be left out but for aoti on a CUDA device"):
        load(copy, graphs=True)
    with pytest.raises(OptionError, match="sessions: must be at least 1"):
        load(copy, sessions=0)
    with pytest.raises(OptionError, match="low memory: must be asked on a CPU, got cuda:0; leave it out"):
        load(copy, device="cuda:0", low_memory=True)


def test_a_newer_schema(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    done = command("run", str(copy), "--label", "sea", "--out", str(copy.parent / "image.png"))
    assert done.returncode == 1 and "schema" in done.stderr and "99" in done.stderr
    assert not (copy.parent / "image.png").exists()


def test_code_from_elsewhere_needs_trust(copy: Path, tmp_path: Path) -> None:
    words = ["run", str(copy), "--label", "sea", "--out", str(tmp_path / "image.png")]
    elsewhere = {"SPARVAR_CACHE_DIR": str(tmp_path / "cache")}
    done = command(*words, **elsewhere)
    assert done.returncode == 1 and "--trust" in done.stderr and "aoti/begin.pt2  sha256" in done.stderr
    assert command(*words, "--trust", **elsewhere).returncode == 0
    assert command(*words).returncode == 0  # made here, and known by its manifest wherever it lies


@pytest.mark.parametrize("name", ["extra.pkl", "aoti/extra.pt2", "setup.py"])
def test_a_file_beside_the_others(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"import os\n")
    with pytest.raises(ArtefactError, match="must be named by the manifest"):
        load(copy)


def test_a_label_that_is_none(copy: Path, tmp_path: Path) -> None:
    done = command("run", str(copy), "--label", "moon", "--out", str(tmp_path / "image.png"))
    assert done.returncode == 1
    assert "input labels: must be a class or its number (0 canyon" in done.stderr and "'moon'" in done.stderr
    done = command("run", str(copy), "--label", "sea", "--out", str(tmp_path / "image.jpg"))
    assert done.returncode == 1 and "must end in .png" in done.stderr


def test_verify_fails_where_image_or_memory_differ(copy: Path, tmp_path: Path) -> None:
    golden = load_file(copy / "golden.safetensors")
    save_file({**golden, "image": 1 - golden["image"]}, copy / "golden.safetensors")
    changed(copy, lambda manifest: dataclasses.replace(manifest, memory={**manifest.memory, "workspace": 0}))
    report = verify(copy, trust=True)
    assert not report.ok and "the golden image: must have at least 45 dB" in report.problems[0]
    done = command("verify", str(copy), "--trust")
    assert done.returncode == 1 and "the golden image: must have at least 45 dB" in done.stderr


FULL = """
import json, resource, shutil, sys
from pathlib import Path
from sparvar.artefact import pack
from sparvar.export import export_artefact
from sparvar.export.formats import aoti_format
from tests.export.small import least, least_plan
source, target, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
aoti_format.compile_all = lambda programs, *_: {name: source / "aoti" / f"{name}.pt2" for name in programs}
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    export_artefact(least(), least_plan(), target, images=2)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("target", "limit"), [("folder", 100_000), ("one.sparvar", 3_000_000), ("one.sparvar", 0)])
def test_a_disk_that_takes_no_more(exported: Exported, tmp_path: Path, target: str, limit: int) -> None:
    words = [sys.executable, "-c", FULL, str(exported.folder), str(tmp_path / target), str(limit or 1 << 40)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if limit:
        assert done.stdout.startswith("OutputError") and "must be writable" in done.stdout, done.stdout + done.stderr
        assert not (tmp_path / target).exists()
    else:
        assert done.stdout == "" and load(tmp_path / target).manifest.images == 2


def test_places_that_cannot_hold_an_artefact(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear reader")
    for place, says in (
        (tmp_path / "none" / "a", "must be in a folder that exists"),
        (tmp_path / "mine", "an artefact"),
    ):
        done = command("export", "tests.export.small:least", "--out", str(place))
        assert done.returncode == 1 and says in done.stderr
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear reader"
    done = command("export", "tests.export.small:least", "--out", str(tmp_path / "a"), "--device", "tpu")
    assert done.returncode == 1 and "--device: must be cpu or cuda" in done.stderr
