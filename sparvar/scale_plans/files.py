"""Writing a file so that there is always a whole one: the old or the new."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from sparvar.errors import OutputError, message


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` under a temporary name, then move it there.

    A symbolic link is followed. Raises `OutputError` when anything fails (no folder, no permission, full disk); what
    stood at ``path`` before is then untouched and the temporary file is gone.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        must = "be writable"
        remedy = "what was there before is untouched; name another file, or make room or permission"
        raise OutputError(message(str(path), must, error.strerror or str(error), remedy)) from error
