"""Files of code that is kept to be run later: private to the user, and sealed with a checksum of their bytes.

Whoever can write such a file, or put another in its place, runs code as the user who loads it; and a damaged library
crashes its process or computes something wrong. So code is kept in folders that belong to the user and that nobody else
may write (`code_folder`), in files of which the same holds, each beside a seal ``NAME.sha256`` with the checksum of its
bytes in the form of ``sha256sum``. Owner, mode and checksum are those of one open file, and the bytes that were
checked are what callers get: nothing can be exchanged in between.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sparvar import env
from sparvar.errors import SparvarError, message
from sparvar.files import make_folder, new_file, sync_folder, temporary_name


class UnsafeFileError(SparvarError):
    """A file is not private, or not the one that was sealed: ``must`` and ``got`` as in `message`."""

    def __init__(self, path: Path, must: str, got: str) -> None:
        self.must, self.got = must, got
        super().__init__(message(str(path), must, got))


@dataclass(frozen=True)
class CodeFolder:
    """Where code is kept, and why that is not the cache folder (empty where it is)."""

    path: Path
    note: str = ""


def not_private(status: os.stat_result) -> tuple[str, str] | None:
    """What a file or folder must be and is, where others may write it; None where the user alone may.

    It must belong to the user (not even root's pass) and have no write bit for group or others; those bits also show
    access control lists. Systems without users have no such question.
    """
    if not hasattr(os, "getuid"):
        return None
    if status.st_uid != os.getuid():
        return "belong to you", f"user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = "0o700" if stat.S_ISDIR(status.st_mode) else "0o600"
        return f"be writable for you alone ({mode})", oct(stat.S_IMODE(status.st_mode))
    return None


def open_private(path: Path) -> BinaryIO:
    """Open a regular file for reading that only the user can have written. A link is an `OSError`.

    Raises:
        UnsafeFileError: it is another user's, others may write it, or it is no regular file.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = open(os.open(path, flags), "rb")  # noqa: SIM115 - the caller closes it
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(path, "be a file", "something else")
        if problem := not_private(status):
            raise UnsafeFileError(path, *problem)
    except BaseException:
        file.close()
        raise
    return file


def tighten(folder: Path) -> None:
    """Make a folder of sparvar's own, or take from one that is there what lets others write it.

    Raises:
        UnsafeFileError: it belongs to another user, or is a link.
        OSError: it cannot be made.
    """
    make_folder(folder)
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeFileError(folder, "be a folder", "a link")
    if not_private(status):
        if status.st_uid != os.getuid():
            raise UnsafeFileError(folder, "belong to you", f"user {status.st_uid}")
        os.chmod(folder, stat.S_IMODE(status.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def code_folder() -> CodeFolder:
    """The folder of code that is kept between runs; it is made where it is missing.

    The cache folder, unless it belongs to another user or others may write it. Then ``sparvar-UID`` in the system's
    folder of temporary files, and where somebody else has that name, a new folder that goes with this process.
    Raises `OSError` where a folder cannot be made.
    """
    cache = env.cache_dir()
    make_folder(cache)
    problem = not_private(os.stat(cache))
    if problem is None:
        return CodeFolder(cache)
    place = _fallback()
    remedy = f"compiled code is kept in {place} instead: chmod go-w the folder, or set SPARVAR_CACHE_DIR to your own"
    return CodeFolder(place, message(f"cache folder {cache}", *problem, remedy))


def _fallback() -> Path:
    place = Path(tempfile.gettempdir()) / f"sparvar-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    status = os.lstat(place)
    if stat.S_ISDIR(status.st_mode) and not_private(status) is None:
        return place
    return _own_folder()


@functools.lru_cache(maxsize=1)
def _own_folder() -> Path:
    place, owner = Path(tempfile.mkdtemp(prefix="sparvar-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child uses its parent's
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(remove)
    return place


def seal_path(path: Path) -> Path:
    """Where the checksum of a sealed file is."""
    return path.with_name(path.name + ".sha256")


def _seal_text(path: Path, digest: str) -> bytes:
    """The name is part of it, so that one sealed file does not pass as another."""
    return f"{digest}  {path.name}\n".encode()


def read_sealed(path: Path) -> bytes:
    """The bytes of a sealed file. Nothing is ever changed in it, so what was read once may be used.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError: it is damaged or not private, or its seal is, or there is none.
        OSError: it cannot be read.
    """
    with open_private(path) as file:
        data = file.read()
    try:
        with open_private(seal_path(path)) as file:
            sealed = file.read(4096)
    except FileNotFoundError as error:
        raise UnsafeFileError(path, f"have its checksum in {seal_path(path).name}", "no such file") from error
    found = hashlib.sha256(data).hexdigest()
    if sealed != _seal_text(path, found):
        raise UnsafeFileError(path, f"have the checksum in {seal_path(path).name}", f"{found[:16]}...")
    return data


def write_sealed(path: Path, data: bytes) -> None:
    """Write a file and its seal for the user alone, whole or not at all, and both on disk before the name is.

    Raises `OSError`.
    """
    temporary = temporary_name(path)
    try:
        with new_file(temporary, 0o600) as file:
            file.write(data)
        _put(temporary, path, hashlib.sha256(data).hexdigest())
    finally:
        temporary.unlink(missing_ok=True)


def seal(temporary: Path, path: Path) -> None:
    """Move a file that is complete to its place, as `write_sealed` does with bytes. Raises `OSError`."""
    with open(temporary, "r+b") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        found = digest.hexdigest() if digest else hashlib.sha256(file.read()).hexdigest()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o600)
    _put(temporary, path, found)


def _put(temporary: Path, path: Path, digest: str) -> None:
    """The seal first: where the second rename does not happen, an older file under the name is damaged, not taken."""
    mark = temporary_name(seal_path(path))
    try:
        with new_file(mark, 0o600) as file:
            file.write(_seal_text(path, digest))
        os.replace(mark, seal_path(path))
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        mark.unlink(missing_ok=True)
