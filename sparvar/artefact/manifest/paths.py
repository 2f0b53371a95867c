"""Which paths an artefact may name: relative, plain, the same on every system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

LIBRARIES = (".so", ".dll", ".dylib")
"""Endings of shared libraries."""
NATIVE = (*LIBRARIES, ".pt2", ".engine")
"""Endings of files that hold native code."""
NEVER = (".pkl", ".pickle", ".pt", ".pth", ".py", ".pyc")
"""Endings of files from which Python code is run; no artefact has any, named or not."""
REFUSED = (*NATIVE, *NEVER, ".bin")
"""Endings that a file may not have unless the manifest names it."""

LONGEST = 1024


def path_problem(path: str) -> str:
    """Return what ``path`` is instead of a relative POSIX path that stays inside its folder; empty if it is one.

    Names that Windows reads otherwise (drives, streams, backslashes, trailing dots and spaces) do not pass either.
    """
    if not path:
        return "nothing"
    if len(path) > LONGEST:
        return f"{len(path)} characters"
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{path!r}, which is no text"
    shown = repr(path)
    for found, what in (("\\", "a backslash"), (":", "a drive or a colon")):
        if found in path:
            return f"{shown} with {what}"
    if not path.isprintable():
        return f"{shown} with unprintable characters"
    if path.startswith("/"):
        return f"the absolute path {shown}"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"{shown} with the part {part!r}"
        if part[-1] in ". ":
            return f"{shown} with a part that ends in {part[-1]!r}"
    return ""


def clashes(paths: Iterable[str]) -> str:
    """Return the first path that is another one up to case, or lies below a file; empty if there is none."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen or key in folders:
            return f"{path!r} beside {(seen.get(key) or folders[key])!r}"
        seen[key] = path
        parts = key.split("/")
        for end in range(1, len(parts)):
            above = "/".join(parts[:end])
            if above in seen:
                return f"{path!r} beside {seen[above]!r}"
            folders.setdefault(above, path)
    return ""


def native_name(path: str) -> bool:
    """Whether a path's name says that it holds native code (``libx.so.1`` too)."""
    name = PurePosixPath(path).name.lower()
    return name.endswith(NATIVE) or ".so." in name


def refused_name(path: str) -> bool:
    """Whether a file of this name may be in an artefact only if the manifest names it."""
    return native_name(path) or path.lower().endswith(REFUSED)
