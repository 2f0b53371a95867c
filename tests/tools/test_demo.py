from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sparvar.errors import OutputError
from sparvar.scale_plans import Plan
from sparvar.tools import options
from sparvar.tools.commands.demo import FILES
from sparvar.tools.result_files import write_files
from tests.tools.conftest import Tiny, command, run_command

PROMISED = (
    "dense_seconds",
    "sparse_seconds",
    "speedup",
    "attention_speedup",
    "psnr_db",
    "ssim",
    "rewritten_sites",
    "planned_sites",
    "peak_memory_dense",
    "peak_memory_sparse",
    "plan_digest",
    "device",
    "torch",
)


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return folder, run_command("demo", "--out", folder, "--images", "1", "--runs", "1", *tiny.options)


@pytest.mark.slow
def test_writes_every_file_and_ends_with_a_table(finished: Any, tiny: Tiny) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert "time per image" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert all(report[name] is not None for name in PROMISED)
    assert report["rewritten_sites"] == report["planned_sites"] == tiny.plan.planned_sites()
    assert report["plan_digest"] == tiny.plan.digest
    assert len(report["seconds_per_scale"]["sparse"]) == 13
    assert [image["class"] for image in report["images"]] == ["mountain"]
    assert Plan.load(folder / "plan.json") == tiny.plan


@pytest.mark.slow
def test_the_picture_has_three_columns_and_the_page_needs_nothing_else(finished: Any) -> None:
    folder, _ = finished
    width, height = Image.open(folder / "comparison.png").size
    assert width > 3 * 512
    assert height > 512
    text = (folder / "report.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 3 + 3 + 3  # the image, tiles of cs4a, tiles of csla
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<svg" in text


@pytest.mark.slow
def test_ctrl_c_leaves_the_files_of_before_whole(finished: Any, tiny: Tiny) -> None:
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = subprocess.Popen(
        command("demo", "--out", folder, "--images", "2", *tiny.options),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "warm-up" in line:  # the second generation has begun
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped with Ctrl-C" in error
    assert "Traceback" not in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_command("demo", "--out", tmp_path / "file" / "out")
    assert done.returncode == 1
    assert "must be a writable folder, got Not a directory; name another folder with --out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_told_before_the_work(invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 5 << 20))
    done = invoke("demo", "--out", tmp_path)
    assert done.exit_code == 1
    assert "must have 64 MiB free, got 5 MiB" in done.stderr


def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "second").write_bytes(b"old")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="second: must be writable, got No space left on device"):
        write_files(tmp_path, {"first": b"new", "second": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first": b"new", "second": b"old"}


def test_a_file_that_is_a_folder(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    done = invoke("demo", "--out", tmp_path)
    assert done.exit_code == 1
    assert "report.json: must be a file or absent, got a folder" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--classes", "mountain,moon"], 2, "'moon' is not a class; the classes are canyon, city"),
        (["--classes", ","], 2, "name at least one of canyon"),
        (["--imagse", "3"], 2, "No such option: --imagse"),
        (["--images", "0"], 2, "--images"),
        (["--inner", "fast"], 2, "'fast' is not one of"),
        (["--weights", "nowhere"], 1, "landscape.json must exist, found no file"),
    ],
)
def test_bad_arguments(invoke: Callable[..., Any], tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = invoke("demo", "--out", tmp_path, *arguments)
    assert done.exit_code == code
    assert text in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ("nosuch", "plan: must be a file or one of the shipped plans"),
        ("auto", "no shipped plan has the fingerprint of this LandscapeVAR"),
        ("other.json", "plan: must be made for this LandscapeVAR"),
        ("cut.json", "it was cut off"),
    ],
)
def test_bad_plans(invoke: Any, tiny: Tiny, tmp_path: Path, plan: str, text: str) -> None:
    model = tiny.plan.model.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    tiny.plan.replace(model=model).save(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text(tiny.path.read_text()[:300])
    source = str(tmp_path / plan) if plan.endswith(".json") else plan
    done = invoke("demo", "--out", tmp_path / "out", "--weights", tiny.weights, "--plan", source)
    assert done.exit_code == 1
    assert text in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_weights(invoke: Any, tiny: Tiny, tmp_path: Path) -> None:
    for path in tiny.weights.iterdir():
        shutil.copy(path, tmp_path)
    with open(tmp_path / "landscape.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    done = invoke("demo", "--out", tmp_path / "out", "--weights", tmp_path)
    assert done.exit_code == 1
    assert "must have sha256" in done.stderr


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(options, "compiler", lambda: None)
    assert options.choose_inner(options.Inner.auto) == "eager"
    assert "No C++ compiler was found" in capsys.readouterr().err
