"""What is unpacked in the cache is loaded as code: others can write neither folders nor files of it."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import pytest

from sparvar.artefact import pack, unpack
from sparvar.errors import OutputError, SparvarWarning
from tests.artefact.factory import CONTENTS, artefact

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="needs the right to give files away"
)  # fmt: skip


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    artefact(tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "one.sparvar")
    return tmp_path / "one.sparvar"


def everything(folder: Path) -> list[Path]:
    return [folder.parent.parent, folder.parent, folder, *folder.rglob("*")]


def test_unpacked_for_the_user_alone(packed: Path) -> None:
    mask = os.umask(0)
    try:
        folder = unpack(packed)
    finally:
        os.umask(mask)
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in everything(folder)}
    assert modes == {True: 0o700, False: 0o600} and len(everything(folder)) > len(CONTENTS)


@pytest.mark.parametrize("name", ["", "aoti", "aoti/begin.pt2", "native/kernels.so"])
@pytest.mark.parametrize("owner", ["others", pytest.param("another", marks=root)])
def test_what_others_can_write_is_unpacked_again(packed: Path, name: str, owner: str) -> None:
    folder = unpack(packed)
    before = (folder / "plan.json").stat().st_ino
    if owner == "others":
        (folder / name).chmod(0o777)
    else:
        os.chown(folder / name, 12345, 12345)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unpack(packed) == folder
    assert (folder / "plan.json").stat().st_ino != before
    assert (folder / name).stat().st_uid == os.getuid() and not (folder / name).stat().st_mode & 0o022


def test_a_cache_that_others_can_write_is_not_used(tmp_path: Path, packed: Path) -> None:
    first = unpack(packed)
    (tmp_path / "cache").chmod(0o777)
    with pytest.warns(SparvarWarning, match=r"cache: must be writable for you alone \(0o700\), got 0o777; compi"):
        folder = unpack(packed)
    assert folder == tmp_path / f"sparvar-{os.getuid()}" / "artefacts" / first.name
    assert (folder / "plan.json").read_bytes() == CONTENTS["plan.json"]


def test_a_folder_of_artefacts_that_others_could_write_is_closed(tmp_path: Path, packed: Path) -> None:
    """The cache is the user's: nobody else can have renamed what is in it."""
    unpack(packed).parent.chmod(0o777)
    assert not unpack(packed).parent.stat().st_mode & 0o022


@root
def test_a_folder_of_artefacts_of_another_user_is_refused(tmp_path: Path, packed: Path) -> None:
    os.chown(unpack(packed).parent, 12345, 12345)
    with pytest.raises(OutputError, match=r"it must belong to you, got user 12345; delete it"):
        unpack(packed)
