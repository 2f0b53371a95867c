"""Files that are written whole or not at all, and locks between processes: the one way in which sparvar does both.

A file is written beside its place under a temporary name, brought to disk, and renamed: readers see the old file or the
new one, whatever fails or stops in between. `locked` imports filelock when it is used; the rest needs nothing but
Python, as artefacts are read with nothing else. `private_files` builds on this for files of code.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sparvar.errors import OutputError, message


def output_error(path: Path, error: OSError) -> OutputError:
    """What to raise where ``path`` could not be written."""
    left = "nothing was left behind and what was there before is untouched"
    remedy = f"{left}; name another place, or make room or permission"
    return OutputError(message(str(path), "be writable", error.strerror or str(error), remedy))


def write_whole(path: Path, data: bytes) -> None:
    """Make ``path`` a file of ``data``, whole or not at all. A symbolic link is followed.

    Raises:
        OutputError: it cannot be written (no folder, no permission, full disk); what stood there is untouched.
    """
    with replacing(Path(os.path.realpath(path))) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of ``path`` at the end; where anything fails it is deleted.

    Args:
        path: a symbolic link there is replaced, not followed.
        mode: permissions of the file, less the process's mask.

    Raises:
        OutputError: the operating system refuses; what stood there is untouched.
    """
    temporary = temporary_name(path)
    try:
        try:
            with new_file(temporary, mode) as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise output_error(path, error) from error
    with contextlib.suppress(OSError):  # the new file is in place: at worst a crash of the system brings the old back
        sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """A name that nothing has, in the folder of ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file that was not there before; its bytes are on disk at the end. Raises `OSError`."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the renames in a folder on disk, where system and file system know of such a thing. Raises `OSError`."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, for the user alone; one that is there stays as it is.

    Raises `OSError`.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


@contextlib.contextmanager
def locked(path: Path, held: OutputError | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads.

    The system gives the lock up when its holder ends, however it ends; the empty file stays.

    Args:
        path: its folder is made where it is missing.
        held: raised at once where another holds the lock; without it, waits for as long as another does.

    Raises:
        OutputError: the file cannot be made, or ``held``.
    """
    from filelock import FileLock, Timeout

    try:
        make_folder(path.parent)
        holding = FileLock(path, timeout=-1 if held is None else 0).acquire()
    except Timeout:
        assert held is not None
        raise held from None
    except OSError as error:
        raise output_error(path, error) from error
    with holding:
        yield
