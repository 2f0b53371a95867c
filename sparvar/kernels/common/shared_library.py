"""Loading a shared library from bytes that were checked, so that what was checked is what is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sparvar.private_files import code_folder

_held: list[int] = []
"""Open files behind loaded libraries. The loader knows a library by its path: a number that another file got would be
taken for the first."""


def load_library(data: bytes, name: str, symbols: Iterable[str]) -> ctypes.CDLL:
    """Load a library from its bytes; ``name`` is for maps and debuggers.

    They are copied to memory that nobody can change any more (Linux), elsewhere to a new file in a private folder,
    which is deleted once it is loaded. Damage to the file that they came from then harms no process that runs, either.

    Raises:
        OSError: the system cannot load it, or it lacks one of ``symbols``.
    """
    library = _from_memory(data, name) or _from_copy(data, name)
    missing = [symbol for symbol in symbols if not hasattr(library, symbol)]
    if missing:
        raise OSError(f"{name} has no function {', '.join(missing)}")
    return library


def _from_memory(data: bytes, name: str) -> ctypes.CDLL | None:
    """None where the system has no such memory, or does not run code in it; a bad library is refused by both ways."""
    if not hasattr(os, "memfd_create"):
        return None
    import fcntl

    try:
        handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
        library = ctypes.CDLL(f"/proc/self/fd/{handle}")
    except OSError:
        os.close(handle)
        return None
    _held.append(handle)
    return library


def _from_copy(data: bytes, name: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix=".loading-", dir=code_folder().path))
    try:
        path = folder / name
        path.write_bytes(data)
        return ctypes.CDLL(str(path))
    finally:
        with contextlib.suppress(OSError):  # Windows keeps the file for as long as it is loaded
            shutil.rmtree(folder)
