"""Artefacts in one file: packing, unpacking into the cache, and archives that are not to be trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparvar.artefact.files import check_files, pack, unpack
from sparvar.artefact.manifest.reading import parse_manifest, read_manifest
from sparvar.errors import ArtefactError, OutputError
from tests.artefact.factory import CONTENTS, artefact, document, files_json

TEXT = json.dumps(document() | {"files": files_json(CONTENTS)}).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artefacts"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    artefact(tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "one.sparvar")
    return tmp_path / "one.sparvar"


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"] if folder.exists() else []


def refused(file: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        unpack(file)
    return str(caught.value)


def test_there_and_back(tmp_path: Path, packed: Path, cache: Path) -> None:
    folder = unpack(packed)
    data = (tmp_path / "made" / "manifest.json").read_bytes()
    assert folder == cache / hashlib.sha256(data).hexdigest()
    assert (folder / "manifest.json").read_bytes() == data
    for name, content in CONTENTS.items():
        assert (folder / name).read_bytes() == content
    assert leftovers(cache) == [folder.name]


def test_the_file_is_an_uncompressed_zip_and_always_the_same(tmp_path: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert [info.filename for info in archive.infolist()] == ["manifest.json", *sorted(CONTENTS)]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    (tmp_path / "made" / "mine.txt").write_text("not in the manifest")
    os.utime(tmp_path / "made" / "plan.json", (1, 1))
    pack(tmp_path / "made", tmp_path / "again.sparvar")
    assert (tmp_path / "again.sparvar").read_bytes() == packed.read_bytes()


def test_what_is_unpacked_is_used_again(packed: Path) -> None:
    folder = unpack(packed)
    before = (folder / "plan.json").stat().st_mtime_ns
    assert unpack(packed) == folder
    assert (folder / "plan.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["flip", "missing", "code", "link"])
def test_what_is_unpacked_and_damaged_is_unpacked_again(packed: Path, cache: Path, damage: str) -> None:
    folder = unpack(packed)
    plan = folder / "plan.json"
    if damage == "flip":
        plan.write_bytes(CONTENTS["plan.json"][:-1] + b"x")
    elif damage == "missing":
        plan.unlink()
    elif damage == "code":
        (folder / "sitecustomize.py").write_text("")
    else:
        plan.unlink()
        plan.symlink_to("/etc/passwd")
    assert unpack(packed) == folder
    check_files(folder, read_manifest(folder)[0])
    assert leftovers(cache) == [folder.name]


def test_what_a_killed_process_left_goes_away(packed: Path, cache: Path) -> None:
    folder = unpack(packed)
    folder.rename(cache / f".{folder.name}.part")
    (cache / f".{folder.name}.part" / "plan.json").write_text("half")
    check_files(unpack(packed), read_manifest(folder)[0])
    assert leftovers(cache) == [folder.name]


@pytest.mark.parametrize("name", ["manifest.json", *CONTENTS])
def test_a_flipped_byte_is_found(packed: Path, cache: Path, name: str) -> None:
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo(name)
    data = bytearray(packed.read_bytes())
    data[info.header_offset + 30 + len(name) + info.file_size - 1] ^= 1
    packed.write_bytes(data)
    assert name in refused(packed)
    assert leftovers(cache) == []


@pytest.mark.parametrize("keep", [0, 10, -1, -100])
def test_a_cut_file_is_refused(packed: Path, cache: Path, keep: int) -> None:
    packed.write_bytes(packed.read_bytes()[:keep])
    says = refused(packed)
    assert says.startswith(str(packed))
    assert "must be an artefact in one file" in says or "must hold a manifest.json" in says
    assert leftovers(cache) == []


def test_no_file(tmp_path: Path) -> None:
    assert "must be a readable artefact in one file, got No such file" in refused(tmp_path / "none.sparvar")
    assert "must be a readable artefact in one file, got Is a directory" in refused(tmp_path)


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def write(path: Path, *more: tuple[zipfile.ZipInfo | str, bytes], drop: str = "", text: bytes = TEXT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("manifest.json", text), *CONTENTS.items()):
            if name != drop:
                archive.writestr(name, data)
        for info, data in more:
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (entry("../evil"), "'../evil': must be a relative path that stays inside"),
        (entry("/etc/evil"), "'/etc/evil': must be a relative path"),
        (entry("a/../../evil"), "must be a relative path"),
        (entry("c:evil"), "must be a relative path"),
        (entry("a\\b"), "must be a relative path"),
        (entry("link", stat.S_IFLNK | 0o777), "'link': must be a file, got a link"),
        (entry("native", stat.S_IFLNK | 0o777), "'native': must be a file, got a link"),
        (entry("pipe", stat.S_IFIFO | 0o644), "'pipe': must be a file, got something else"),
        (entry("Plan.json"), "must hold every file once, up to case, got 'Plan.json' beside 'plan.json'"),
        (entry("plan.json/x"), "must hold every file once"),
        (entry("more.so"), "must be named by the manifest"),
        (entry("setup.py"), "must be named by the manifest"),
    ],
    ids=lambda value: value.filename if isinstance(value, zipfile.ZipInfo) else "",
)
def test_unsafe_members(tmp_path: Path, cache: Path, info: zipfile.ZipInfo, says: str) -> None:
    assert says in refused(write(tmp_path / "bad.sparvar", (info, b"x")))
    assert leftovers(cache) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(tmp_path: Path) -> None:
    says = refused(write(tmp_path / "bad.sparvar", ("plan.json", CONTENTS["plan.json"])))
    assert "'plan.json': must be there once, got twice" in says


def test_members_that_do_no_harm_are_left_out(tmp_path: Path) -> None:
    folder = unpack(write(tmp_path / "more.sparvar", (entry("aoti/", stat.S_IFDIR | 0o755), b""), ("notes.txt", b"x")))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == sorted(
        ["manifest.json", *CONTENTS]
    )


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.sparvar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", TEXT)
    assert "must be stored as it is, got compressed; pack the folder with sparvar" in refused(path)


def patched(path: Path, name: str, offset: int, value: bytes) -> Path:
    """Change a field of a member's entry in the central directory."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "bad.sparvar"), "end.onnx", 8, b"\x01\x00")
    assert "must be stored as it is, got encrypted" in refused(path)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "bad.sparvar"), "end.onnx", 20, (2**31).to_bytes(4, "little") * 2)
    assert "must hold less than its own" in refused(path)


def test_a_member_of_another_size_is_refused(tmp_path: Path) -> None:
    changed = files_json(CONTENTS) | {"plan.json": {"sha256": "0" * 64, "bytes": 3}}
    text = json.dumps(document() | {"files": changed}).encode()
    assert "'plan.json': must have 3 bytes, got" in refused(write(tmp_path / "bad.sparvar", text=text))


@pytest.mark.parametrize("drop", ["manifest.json", "plan.json", "aoti/end.pt2"])
def test_a_missing_member_is_named(tmp_path: Path, drop: str) -> None:
    says = refused(write(tmp_path / "bad.sparvar", drop=drop))
    assert drop in says
    assert "got no" in says


def test_a_bad_manifest_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.sparvar", text=TEXT.replace(b'"schema": 1', b'"schema": 2'))
    assert f"{path}: manifest.json: schema: must be 1" in refused(path)


def no_space(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


@full_device
def test_a_disk_that_fills_while_unpacking(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open

    def device(path: Path, mode: str = "r") -> Any:
        return real("/dev/full", "wb") if mode == "xb" else real(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", device)
        with pytest.raises(OutputError, match="No space left on device; nothing was left behind") as caught:
            unpack(packed)
    assert str(cache) in str(caught.value)
    assert leftovers(cache) == []
    check_files(unpack(packed), parse_manifest(TEXT))


@pytest.mark.parametrize("call", ["os.replace", "os.mkdir"])
def test_a_full_disk_leaves_nothing_unpacked(
    packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call, no_space)
        with pytest.raises(OutputError, match="No space left on device; nothing was left behind"):
            unpack(packed)
    assert leftovers(cache) == []


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", pytest.param("os.open", marks=full_device)])
def test_a_full_disk_leaves_nothing_packed(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before, real = packed.read_bytes(), os.open

    def device(path: Path, flags: int, mode: int = 0o777) -> int:
        return real("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(call, device if call == "os.open" else no_space)
        with pytest.raises(OutputError, match="No space left on device; nothing was left behind") as caught:
            pack(tmp_path / "made", packed)
    assert str(packed) in str(caught.value)
    assert packed.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "one.sparvar"]


LIMITED = """
import resource, sys
from pathlib import Path
from sparvar.artefact import pack, unpack
from sparvar.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    unpack(Path(sys.argv[2])) if sys.argv[1] == "unpack" else pack(sys.argv[2], sys.argv[3])
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs limits of POSIX")
def test_a_write_that_stops_half_way(tmp_path: Path, packed: Path, cache: Path) -> None:
    for words in (["unpack", packed], ["pack", tmp_path / "made", tmp_path / "two.sparvar"]):
        done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, check=True)
        assert "must be writable, got File too large; nothing was left behind" in done.stdout
    assert leftovers(cache) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "made", "one.sparvar"]


def test_a_folder_that_cannot_be_written(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"none/x\.sparvar: must be writable, got No such file or directory"):
        pack(tmp_path / "made", tmp_path / "none" / "x.sparvar")
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(packed))
    with pytest.raises(OutputError, match="must be writable, got Not a directory"):
        unpack(packed)


def test_a_damaged_folder_is_not_packed(tmp_path: Path) -> None:
    artefact(tmp_path / "made")
    (tmp_path / "made" / "plan.json").write_bytes(CONTENTS["plan.json"][:-1] + b"x")
    with pytest.raises(ArtefactError, match=r"plan\.json: must have sha256"):
        pack(tmp_path / "made", tmp_path / "one.sparvar")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


UNPACK = """
import sys
from pathlib import Path
from sparvar.artefact import files
written, extract = [], files._extract
files._extract = lambda member, target: (written.append(target), extract(member, target))[1]
print("ready", flush=True)
sys.stdin.readline()
print(files.unpack(Path(sys.argv[1])), len(written))
"""


def test_processes_that_unpack_at_once(packed: Path, cache: Path) -> None:
    command = [sys.executable, "-c", UNPACK, str(packed)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    (folder,) = {folder for folder, _ in said}
    assert sorted(int(count) for _, count in said) == [0, 0, 0, len(CONTENTS)]
    check_files(folder, read_manifest(folder)[0])
    assert leftovers(cache) == [Path(folder).name]
