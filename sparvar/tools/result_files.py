"""The files that a command writes: their place is checked before the work, each is written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sparvar.errors import OutputError, message
from sparvar.files import write_whole

ROOM = 64 << 20
"""Bytes that must be free before a demo starts; its files take about a tenth."""


def prepare_folder(folder: Path, names: tuple[str, ...] = (), room: int = ROOM) -> None:
    """Make ``folder`` and show that files can be written there, before any long work.

    Raises:
        OutputError: it cannot be made or written, has less than ``room`` bytes free, or one of ``names`` is a folder.
    """
    remedy = "name another folder with --out, or make room or permission"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".sparvar-", suffix=".tmp") as probe:
            probe.write(b"probe")
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(message(str(folder), "be a writable folder", error.strerror or str(error), remedy)) from error
    if free < room:
        raise OutputError(message(str(folder), f"have {room >> 20} MiB free", f"{free >> 20} MiB", remedy))
    for name in names:
        if (folder / name).is_dir():
            raise OutputError(message(str(folder / name), "be a file or absent", "a folder", "move it away"))


def prepare_file(path: Path | None) -> None:
    """Show that ``path``, where there is one, can be written, before any long work. Raises `OutputError`."""
    if path is not None:
        prepare_folder(path.parent, (path.name,), room=1 << 20)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` (name to content) into ``folder``.

    Raises:
        OutputError: one could not be written; those before it are whole, it and those after it are as they were.
    """
    for name, data in files.items():
        write_whole(folder / name, data)
