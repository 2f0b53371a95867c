"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparvar.errors import OutputError
from sparvar.files import locked, replacing, write_whole


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, mode=0o600) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_of_the_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_link_is_followed_by_write_whole_and_replaced_by_replacing(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    write_whole(link, b"one")
    assert link.is_symlink() and real.read_bytes() == b"one"
    with replacing(link) as file:
        file.write(b"two")
    assert not link.is_symlink() and real.read_bytes() == b"one"


def test_the_folder_is_brought_to_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that a crash could lose the rename; a file system that cannot do it is no error."""
    synced: list[bool] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append(folder)
        if folder:
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "file", b"data")
    assert synced == [False, True] and (tmp_path / "file").read_bytes() == b"data"


HOLD = """
import sys
from pathlib import Path
from sparvar.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_keeps_other_processes_out_until_its_holder_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        busy = OutputError("busy")
        with pytest.raises(OutputError, match="busy"), locked(path, busy):
            pass
        threading.Timer(0.3, holder.kill).start()
        started = time.monotonic()
        with locked(path):  # given up by the system, though the holder was killed
            assert time.monotonic() - started > 0.2
    assert path.exists()


def test_a_lock_keeps_other_threads_out(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with locked(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    says = r"file/lock: must be writable, got .*; nothing was left behind"
    with pytest.raises(OutputError, match=says), locked(tmp_path / "file" / "lock"):
        pass
    assert os.listdir(tmp_path) == ["file"]
