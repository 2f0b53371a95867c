"""Writing so that there is always a whole thing, and locks between processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sparvar.errors import OutputError, message
from sparvar.private_files import make_folder

__all__ = ["locked", "output_error", "whole"]


def output_error(path: Path, error: OSError) -> OutputError:
    """What to raise where ``path`` could not be written."""
    remedy = "nothing was left behind; name another place, or make room or permission"
    return OutputError(message(str(path), "be writable", error.strerror or str(error), remedy))


@contextlib.contextmanager
def whole(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a file beside ``path`` that is moved there at the end; if anything fails it is deleted.

    ``mode`` holds permissions, less the process's mask. Raises `OutputError` where the operating system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
            with open(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise output_error(path, error) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; waits for as long as another holds it.

    The system gives the lock up when its holder ends, however it ends; the empty file stays. Raises `OutputError`
    where the file cannot be made.
    """
    try:
        make_folder(path.parent)
        handle = open(path, "ab")  # noqa: SIM115 - closed below, which gives the lock up
    except OSError as error:
        raise output_error(path, error) from error
    with handle:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    handle.seek(0)
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.05)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
