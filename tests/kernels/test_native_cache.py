"""Compiled kernels that are kept: damaged ones are built again, and those of other users are not run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparvar import kernels
from sparvar.errors import KernelError, SparvarWarning
from sparvar.kernels.common import native
from sparvar.kernels.common.shared_library import _from_copy, load_library
from sparvar.private_files import read_sealed, seal_path, write_sealed
from tests.artefact.planted import needs_compiler as needs_c
from tests.artefact.planted import planted_library
from tests.kernels.native_cache import Cache, make_cache
from tests.kernels.test_native import forgotten

pytestmark = [
    pytest.mark.skipif(not kernels.native_status().usable, reason="no native kernels"),
    pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX"),
]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path)


@pytest.fixture
def here(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """The same, used by this process."""
    for name in ("SPARVAR_CACHE_DIR", "SPARVAR_CXX", "SPARVAR_CPU_KERNELS"):
        monkeypatch.setenv(name, cache.environment[name])
    monkeypatch.setattr("tempfile.tempdir", str(cache.temporary))
    with forgotten(monkeypatch):
        yield cache
    native._warn_of_cache.cache_clear()


def forget() -> None:
    native._Choice.loaded = native._Choice.asked = None
    native._build.cache_clear()


def put(path: Path, data: bytes) -> None:
    """Another file under the name: what runs has the old one open."""
    other = path.with_name("other")
    other.write_bytes(data)
    other.chmod(0o600)
    other.replace(path)


def damaged(data: bytes, seed: int) -> bytes:
    """Cut off, ending in zeros, or with a flipped bit."""
    chance = random.Random(seed)
    at = chance.randrange(len(data))
    changed = bytearray(data)
    if seed % 3 == 0:
        return bytes(changed[:at])
    if seed % 3 == 1:
        changed[at:] = bytes(len(data) - at)
        return bytes(changed)
    changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed)


DAMAGED = """
    import json, sys, warnings
    from pathlib import Path
    import torch
    from sparvar import kernels
    from sparvar.kernels.common import native
    from tests.kernels.test_native_cache import damaged, forget, put

    warnings.simplefilter("ignore")
    torch.manual_seed(3)
    x = torch.randn(3, 1, 2, 64, 16)
    wanted = kernels.attention_stats(*x, 0.25)[0]
    library = Path(kernels.native_status().library)
    whole, tried = library.read_bytes(), 0
    for seed in range(48):
        bad = damaged(whole, seed)
        if bad == whole:
            continue
        put(library, bad)
        forget()
        assert torch.equal(kernels.attention_stats(*x, 0.25)[0], wanted), seed
        status = kernels.native_status()
        assert status.library == str(library) and library.read_bytes() == whole, seed
        assert len(status.notes) == 1 and "it was built again" in status.notes[0], (seed, status.notes)
        tried += 1
    print(json.dumps({"tried": tried}))
"""


def test_damaged_libraries_are_built_again(cache: Cache) -> None:
    """In a process of its own: what slips through crashes that."""
    found = cache.run(DAMAGED)
    assert isinstance(found["tried"], int) and found["tried"] > 40
    assert cache.builds == 1 + found["tried"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_next_process_is_told(cache: Cache, seed: int) -> None:
    first = cache.run()
    library = Path(str(first["library"]))
    assert not first["warned"] and not first["notes"]
    put(library, damaged(library.read_bytes(), seed))
    second, third = cache.run(), cache.run()
    says = f"{library}: must have the checksum in {library.name}.sha256, got "
    (warned,) = second["warned"]  # type: ignore[misc]
    assert warned.startswith(says) and warned.endswith("; it was built again")
    assert first["sum"] == second["sum"] == third["sum"]
    assert not third["warned"] and cache.builds == 2


@pytest.mark.parametrize("seal", ["none", "cut", "another's name", "of what is there"])
def test_a_seal_that_does_not_hold(here: Cache, seal: str) -> None:
    library = Path(kernels.native_status().library)
    whole, mark = library.read_bytes(), seal_path(library)
    assert mark.read_text() == f"{hashlib.sha256(whole).hexdigest()}  {library.name}\n", "as sha256sum writes it"
    if seal == "none":
        mark.unlink()
    elif seal == "cut":
        mark.write_bytes(mark.read_bytes()[:20])
    elif seal == "another's name":
        write_sealed(library.with_name("other.so"), whole)
        mark.write_bytes(seal_path(library.with_name("other.so")).read_bytes())
    forget()
    assert kernels.native_status().usable and bool(kernels.native_status().notes) == (seal != "of what is there")
    assert read_sealed(library) == whole
    assert here.builds == (1 if seal == "of what is there" else 2)


def test_kept_for_the_user_alone(here: Cache) -> None:
    mask = os.umask(0)
    try:
        library = Path(kernels.native_status().library)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(here.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (library, seal_path(library))} == {0o600}
    assert {path.suffix for path in here.folder.iterdir()} == {".so", ".sha256", ".lock"}


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_a_disk_that_fails_leaves_nothing_that_is_taken(
    here: Cache, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Every write is synced, folder too, and whichever fails, the next attempt is whole."""
    real, calls = os.fsync, []

    def sync(handle: int) -> None:
        calls.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        if len(calls) == fails:
            raise OSError(5, "Input/output error")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        status = kernels.native_status()
    assert status.usable == (fails == 4) and ("Input/output error" in status.reason) == (fails < 4)
    assert calls == [False, False, True][: min(fails, 3)], "library, seal, folder"
    forget()
    assert kernels.native_status().usable and not kernels.native_status().notes
    assert not [path for path in here.folder.iterdir() if path.suffix == ".tmp"]


@needs_c
def test_what_was_checked_is_what_is_loaded(here: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "the-code-ran"
    planted = planted_library(tmp_path / "build", mark)
    library = Path(kernels.native_status().library)
    forget()

    def swapped(data: bytes, name: str, symbols: tuple[str, ...]) -> object:
        put(library, planted)
        return load_library(data, name, symbols)

    monkeypatch.setattr(native, "load_library", swapped)
    assert kernels.native_status().usable and not mark.exists()
    assert kernels.native_library() != planted, "nor is it exported"


def test_loaded_from_a_copy_where_there_is_no_such_memory(here: Cache) -> None:
    data = kernels.native_library()
    assert _from_copy(data, "kernels.so").sparvar_isa
    assert not [path for path in here.folder.iterdir() if path.is_dir()]
    with pytest.raises(OSError):
        load_library(b"no library", "kernels.so", ())


@needs_c
def test_a_library_that_lacks_a_function_is_built_again(here: Cache, tmp_path: Path) -> None:
    """Even one that the user has sealed; one of other flags does not serve for it."""
    mark = tmp_path / "the-code-ran"
    library = Path(kernels.native_status().library)
    whole = library.read_bytes()
    write_sealed(library, planted_library(tmp_path / "build", mark))
    forget()
    status = kernels.native_status()
    assert mark.exists(), "in a private folder it is loaded: the plant works"
    assert status.library == str(library) and library.read_bytes() == whole
    assert "has no function sparvar_attention, sparvar_bias_activation" in status.notes[0]
    (here.folder.parent / "compiled.so").write_bytes(planted_library(tmp_path / "build", mark))
    shutil.rmtree(here.folder)
    forget()
    status = kernels.native_status()
    assert not status.usable and "has no function" in status.reason
    assert len(list(here.folder.glob("*.so"))) == 1, "other flags were not tried"


@pytest.mark.slow
@needs_c
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(cache: Cache, tmp_path: Path, mode: int) -> None:
    library = Path(str(cache.run()["library"]))
    mark = tmp_path / "the-code-ran"
    write_sealed(library, planted_library(tmp_path / "build", mark))
    cache.folder.chmod(mode)
    found = cache.run()
    assert not mark.exists()
    private = cache.temporary / f"sparvar-{os.getuid()}"
    assert found["library"] == str(private / library.name) and found["implementation"] == "native"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    says = f"cache folder {cache.folder}: must be writable for you alone (0o700), got {oct(mode)}; compiled code is"
    (warned,) = found["warned"]  # type: ignore[misc]
    assert warned.startswith(says) and f"in {private} instead: chmod go-w" in warned
    assert cache.run()["sum"] == found["sum"] and cache.builds == 2, "the private folder is kept"
    if mode == 0o777:
        done = cache.process(sys.executable, "-m", "sparvar.tools", "doctor", "--json")
        facts = {each["subject"]: each for each in json.loads(done.stdout)["findings"]}
        assert facts["cache folder"]["state"] == facts["CPU kernels, cache"]["state"] == "note"
        assert "writable for you alone" in facts["cache folder"]["found"]
        assert str(private) in facts["cache folder"]["remedy"]
        assert not mark.exists()


@needs_c
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs the right to give files away")
@pytest.mark.parametrize("what", ["folder", "library", "seal", "private folder"])
def test_what_belongs_to_another_user_is_not_used(cache: Cache, tmp_path: Path, what: str) -> None:
    library = Path(str(cache.run()["library"]))
    mark, private = tmp_path / "the-code-ran", cache.temporary / f"sparvar-{os.getuid()}"
    planted = planted_library(tmp_path / "build", mark)
    write_sealed(library, planted)
    given = {"folder": cache.folder, "library": library, "seal": seal_path(library), "private folder": cache.folder}
    os.chown(given[what], 12345, 12345)
    if what == "private folder":
        private.mkdir()
        write_sealed(private / library.name, planted)
        os.chown(private, 12345, 12345)
    found = cache.run()
    assert not mark.exists() and found["implementation"] == "native"
    assert any("must belong to you, got user 12345" in each for each in found["warned"])  # type: ignore[attr-defined]
    if what == "folder":
        assert found["library"] == str(private / library.name)
    elif what == "private folder":
        place = Path(str(found["library"])).parent
        assert place.parent == cache.temporary and place != private
        assert not place.exists(), "it goes with the process"
    else:
        assert found["library"] == str(library) and library.read_bytes() != planted


@needs_c
@pytest.mark.parametrize("loose", ["library", "seal", "link"])
def test_a_file_that_others_can_write_is_not_used(here: Cache, tmp_path: Path, loose: str) -> None:
    mark = tmp_path / "the-code-ran"
    library = Path(kernels.native_status().library)
    write_sealed(library, planted_library(tmp_path / "build", mark))
    if loose == "link":
        library.rename(tmp_path / "real.so")
        library.symlink_to(tmp_path / "real.so")
    else:
        (library if loose == "library" else seal_path(library)).chmod(0o620)
    forget()
    with pytest.warns(SparvarWarning, match="it was built again"):
        assert kernels.implementation("cpu") == "native"
    assert not mark.exists() and not library.is_symlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.implementation("cpu") == "native", "said once"


@needs_c
def test_an_artefacts_library_is_the_one_that_was_checked(here: Cache, tmp_path: Path) -> None:
    mark = tmp_path / "the-code-ran"
    data = kernels.native_library()
    forget()
    (tmp_path / "kernels.so").write_bytes(planted_library(tmp_path / "build", mark))
    with pytest.raises(KernelError, match="must have sha256"):
        kernels.adopt_library(tmp_path / "kernels.so", hashlib.sha256(data).hexdigest())
    assert not mark.exists()
    (tmp_path / "kernels.so").write_bytes(data)
    kernels.adopt_library(tmp_path / "kernels.so", hashlib.sha256(data).hexdigest())
    assert kernels.native_status().library == str(tmp_path / "kernels.so")
    assert here.builds == 1
