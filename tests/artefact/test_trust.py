"""Whose native code runs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sparvar.artefact import known, pack, read_manifest, remember, require_trust, unpack
from sparvar.errors import ArtefactError, OutputError
from tests.artefact.factory import artefact

DIGEST = "ab" * 32
posix = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artefacts-made-here.json"


def test_what_was_made_here_is_known(path: Path) -> None:
    assert not known(DIGEST)
    remember(DIGEST)
    remember("cd" * 32)
    remember(DIGEST)
    assert known(DIGEST)
    assert not known("00" * 32)
    assert json.loads(path.read_text()) == [DIGEST, "cd" * 32]


@posix
def test_only_the_user_reads_and_writes_the_list(path: Path) -> None:
    mask = os.umask(0)
    try:
        remember(DIGEST)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_native_code_from_elsewhere_needs_trust(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    manifest, digest = read_manifest(tmp_path / "a")
    with pytest.raises(ArtefactError) as caught:
        require_trust(manifest, digest, "aoti", False)
    says = str(caught.value)
    for name in ("aoti/begin.pt2", "aoti/block.pt2", "aoti/end.pt2", "native/kernels.so"):
        assert f"{name}  sha256 {manifest.files[name].sha256}" in says
    assert "--trust on the command line, trust=True in Python" in says
    require_trust(manifest, digest, "aoti", True)
    assert not known(digest)
    require_trust(manifest, digest, "onnx", False)
    remember(digest)
    require_trust(manifest, digest, "aoti", False)


def test_an_artefact_made_here_is_known_in_one_file_too(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    remember(read_manifest(tmp_path / "a")[1])
    pack(tmp_path / "a", tmp_path / "a.sparvar")
    manifest, digest = read_manifest(unpack(tmp_path / "a.sparvar"))
    require_trust(manifest, digest, "aoti", False)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["x"]', "\xff", "[" * 100_000])
def test_a_damaged_list_is_an_error(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    for call in (known, remember):
        with pytest.raises(ArtefactError, match=r"artefacts-made-here\.json: must be .*; delete it"):
            call(DIGEST)


@posix
def test_a_list_that_others_could_write_is_not_believed(tmp_path: Path, path: Path) -> None:
    remember(DIGEST)
    path.chmod(0o620)
    with pytest.raises(ArtefactError, match=r"must be writable for you alone \(0o600\), got 0o620; delete it"):
        known(DIGEST)
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    with pytest.raises(ArtefactError, match="must be a readable file and no link"):
        known(DIGEST)


@posix
def test_a_list_of_another_user_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(DIGEST)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ArtefactError, match=f"must belong to you, got user {owner}"):
        known(DIGEST)


def test_what_is_no_checksum_is_not_remembered(path: Path) -> None:
    with pytest.raises(ArtefactError, match="must be 64 hexadecimal digits"):
        remember("x")
    assert not path.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="must be writable"):
        remember(DIGEST)


REMEMBER = """
import sys
from sparvar.artefact import remember
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    remember(f"{int(sys.argv[1]) * 100 + number:064x}")
"""


def test_processes_that_remember_at_once(path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", REMEMBER, word], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for word in "012"
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
    assert sorted(json.loads(path.read_text())) == sorted(f"{i * 100 + n:064x}" for i in range(3) for n in range(20))
    assert {entry.suffix for entry in path.parent.iterdir()} == {".json", ".lock"}
