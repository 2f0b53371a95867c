"""What may lie in an artefact's folder, and whether it is whole."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from sparvar.artefact.files import check_files
from sparvar.artefact.manifest.paths import clashes, path_problem
from sparvar.artefact.manifest.schema import Manifest
from sparvar.artefact.pickles import is_pickle
from sparvar.errors import ArtefactError
from tests.artefact.factory import CONTENTS, PACKAGE, archive, artefact

posix = pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("true",)


def refused(folder: Path, manifest: Manifest, names: list[str] | None = None) -> str:
    with pytest.raises(ArtefactError) as caught:
        check_files(folder, manifest, names)
    return str(caught.value)


def test_a_whole_artefact_passes(tmp_path: Path) -> None:
    manifest = artefact(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    check_files(tmp_path, manifest)
    check_files(str(tmp_path), manifest, ["plan.json"])


@pytest.mark.parametrize("name", list(CONTENTS))
def test_a_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    manifest = artefact(tmp_path)
    data = bytearray(CONTENTS[name])
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    says = refused(tmp_path, manifest)
    assert f"{tmp_path / name}: must have sha256" in says or "must be a whole archive" in says
    if not name.endswith(".pt2"):
        check_files(tmp_path, manifest, ["plan.json" if name != "plan.json" else "README.md"])


@pytest.mark.parametrize("name", list(CONTENTS))
def test_a_missing_or_cut_file_is_found(tmp_path: Path, name: str) -> None:
    manifest = artefact(tmp_path)
    (tmp_path / name).write_bytes(CONTENTS[name][:-1])
    says = refused(tmp_path, manifest, [])
    assert f"{tmp_path / name}: must have {len(CONTENTS[name])} bytes, got {len(CONTENTS[name]) - 1}" in says
    (tmp_path / name).unlink()
    assert f"{tmp_path / name}: must be there, got no file" in refused(tmp_path, manifest, [])
    (tmp_path / name).mkdir()
    assert "must be there, got no file" in refused(tmp_path, manifest, [])


def test_only_names_of_the_manifest_are_asked_for(tmp_path: Path) -> None:
    assert "must have 'other' in its manifest" in refused(tmp_path, artefact(tmp_path), ["other"])


@posix
@pytest.mark.parametrize("kind", ["file", "folder", "unnamed", "dangling"])
def test_links_are_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "artefact"
    manifest = artefact(folder)
    if kind == "file":
        (folder / "plan.json").rename(tmp_path / "plan.json")
        (folder / "plan.json").symlink_to(tmp_path / "plan.json")
    elif kind == "folder":
        (folder / "native").rename(tmp_path / "native")
        (folder / "native").symlink_to(tmp_path / "native")
    else:
        (folder / "more.txt").symlink_to(folder / "plan.json" if kind == "unnamed" else "/nowhere")
    says = "must be a file or a folder, got a link; copy the artefact with its links followed"
    assert says in refused(folder, manifest)


@posix
def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    manifest = artefact(tmp_path / "artefact")
    (tmp_path / "link").symlink_to(tmp_path / "artefact")
    check_files(tmp_path / "link", manifest)


@posix
def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    manifest = artefact(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: must be a file or a folder, got something else" in refused(tmp_path, manifest)


@pytest.mark.parametrize(
    "name",
    ["a.so", "lib/b.so.1", "c.PT2", "d.dll", "e.dylib", "f.engine", "g.pkl", "h.pickle", "i.pt", "j.pth", "k.bin",
     "l.py", "m.pyc"],
)  # fmt: skip
def test_code_that_nobody_names_is_refused(tmp_path: Path, name: str) -> None:
    manifest = artefact(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert f"{path}: must be named by the manifest" in refused(tmp_path, manifest, [])


def torch_saved(path: Path, zipped: bool) -> bytes:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.unlink()
    return data


def pickles(folder: Path) -> dict[str, bytes]:
    made = {f"protocol {protocol}": pickle.dumps(Evil(), protocol) for protocol in range(6)}
    made |= {f"data {protocol}": pickle.dumps({"a": [1, "b"]}, protocol) for protocol in range(2, 6)}
    made |= {
        "without an end": pickle.dumps(Evil(), 2)[:-1],
        "then nonsense": pickle.dumps(Evil(), 4)[:-1] + b"\x00\x00",
        "long": pickle.dumps(["x" * 100] * 20_000, 4),
        "torch": torch_saved(folder / "x", True),
        "old torch": torch_saved(folder / "x", False),
        "in a zip": archive({"x/data.pkl": b"anything"}),
        "behind other bytes": b"something" + archive({"x/data.pkl": b"anything"}),
        "unnamed in a zip": archive({"x/readme": pickle.dumps(Evil())}, zipfile.ZIP_DEFLATED),
    }
    return made


@pytest.mark.parametrize("name", ["README.md", "begin.onnx", "aoti/begin.pt2", "notes.txt"])
def test_pickles_are_refused_whatever_their_name(tmp_path: Path, name: str) -> None:
    for number, (kind, data) in enumerate(pickles(tmp_path).items()):
        folder = tmp_path / str(number)
        named = {name: data} if name in CONTENTS else {}
        manifest = artefact(folder, named)
        (folder / name).write_bytes(data)
        says = refused(folder, manifest, [])
        assert str(folder / name) in says, kind
        assert "a pickle runs code when it is read" in says, kind


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"model/data.pkl": b"x"}, "an archive with 'model/data.pkl'"),
        ({"model/CODE.PY": b"x"}, "an archive with 'model/CODE.PY'"),
        ({"model/w.pt": b"x"}, "an archive with 'model/w.pt'"),
        ({"model/w": pickle.dumps(Evil())}, "an archive with the pickle 'model/w'"),
    ],
)
def test_programs_hold_no_pickles(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    manifest = artefact(tmp_path, {"aoti/end.pt2": archive(members)})
    assert says in refused(tmp_path, manifest, [])


def test_a_damaged_program_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    manifest = artefact(tmp_path, {"aoti/end.pt2": PACKAGE[:-10]})
    assert "must be a whole archive" in refused(tmp_path, manifest, [])


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x4E0280, 0x880480])
def test_safetensors_whose_length_looks_like_a_pickle(length: int) -> None:
    plain = save({"a": np.zeros(1, np.float32)})
    text = plain[8 : 8 + int.from_bytes(plain[:8], "little")].rstrip()
    data = length.to_bytes(8, "little") + text.ljust(length) + bytes(4)
    assert not is_pickle(data)


@pytest.mark.parametrize(
    "text",
    [b"", b"\x80", b"\x80\x02", b"\x80\x02\x00", b"# Read me.", b"N.", b"checkpoint\nlist\n\nit is", b'{"a": 1}'],
)
def test_text_is_no_pickle(text: bytes) -> None:
    assert not is_pickle(text)


VALUES = st.recursive(st.none() | st.integers() | st.text() | st.binary(), st.lists)


@given(VALUES, st.integers(2, 5))
def test_every_pickle_with_a_header_is_one(value: Any, protocol: int) -> None:
    assert is_pickle(pickle.dumps(value, protocol))


@given(st.binary(max_size=200))
def test_random_bytes_are_looked_at_without_harm(data: bytes) -> None:
    assert is_pickle(data) in (True, False)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "../a", "a/../b", "a/..", ".", "./a", "a//b", "a/", "a\\b", "c:/a", "a:b", "a\0b", "a\nb", "a/b. ", "a.",
     "\ud800", "x" * 1025, "\u202ea"],
)  # fmt: skip
def test_unsafe_paths(path: str) -> None:
    assert path_problem(path)


@pytest.mark.parametrize("path", ["a", "a/b.c", "aoti/x-1_2.pt2", ".hidden", "a..b", "größe/файл"])
def test_plain_paths(path: str) -> None:
    assert path_problem(path) == ""


@given(st.text(alphabet="ab./\\: \0\n", max_size=8))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    if not path_problem(path):
        assert os.path.normpath(path) == path
        assert not os.path.isabs(path)
        assert not path.startswith("..")


@pytest.mark.parametrize(
    ("paths", "clash"),
    [
        (["a", "b"], ""),
        (["a/b", "a/c", "a/d/e"], ""),
        (["a", "A"], "'A' beside 'a'"),
        (["a/b", "A/B"], "'A/B' beside 'a/b'"),
        (["a", "a/b"], "'a/b' beside 'a'"),
        (["a/b", "a"], "'a' beside 'a/b'"),
        (["straße", "STRASSE"], "'STRASSE' beside 'straße'"),
        (["\u00e9", "e\u0301"], "'e\u0301' beside '\u00e9'"),
    ],
)
def test_clashes(paths: list[str], clash: str) -> None:
    assert clashes(paths) == clash
