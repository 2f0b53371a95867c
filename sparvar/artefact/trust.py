"""Whose native code is run: that of artefacts made here, and that of others when somebody says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sparvar import env
from sparvar.artefact.manifest.schema import Manifest
from sparvar.errors import ArtefactError, message
from sparvar.files import locked, replacing
from sparvar.private_files import UnsafeFileError, open_private

DIGEST = re.compile("[0-9a-f]{64}")


def _path() -> Path:
    return env.cache_dir() / "artefacts-made-here.json"


def _read(path: Path) -> list[str]:
    """The checksums in the list; none where there is none. Raises `ArtefactError` where others could have written."""
    remedy = "delete it, and load artefacts made here with --trust"
    try:
        with open_private(path) as file:
            data = file.read()
    except FileNotFoundError:
        return []
    except UnsafeFileError as error:
        raise ArtefactError(message(str(path), error.must, error.got, remedy)) from error
    except OSError as error:
        got = error.strerror or str(error)
        raise ArtefactError(message(str(path), "be a readable file and no link", got, remedy)) from error
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(message(str(path), "be JSON", str(error), remedy)) from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, str) and DIGEST.fullmatch(entry) for entry in entries
    ):
        raise ArtefactError(message(str(path), "be a list of checksums", "something else", remedy))
    return entries


def remember(manifest_sha256: str) -> None:
    """Note that the artefact with this manifest was made here, so that its native code may run.

    Raises:
        ArtefactError: the list is damaged or not safe.
        OutputError: it cannot be written.
    """
    if not DIGEST.fullmatch(manifest_sha256):
        raise ArtefactError(message("the manifest's sha256", "be 64 hexadecimal digits", repr(manifest_sha256)))
    path = _path()
    with locked(path.with_suffix(".lock")):
        entries = _read(path)
        if manifest_sha256 not in entries:
            with replacing(path, 0o600) as file:
                file.write(json.dumps([*entries, manifest_sha256], indent=1).encode() + b"\n")


def known(manifest_sha256: str) -> bool:
    """Whether the artefact with this manifest was made here. Raises `ArtefactError` where the list is not safe."""
    return manifest_sha256 in _read(_path())


def require_trust(manifest: Manifest, manifest_sha256: str, format: str, trust: bool) -> None:
    """Refuse to run native code that came from elsewhere, unless ``trust`` says that it may.

    The manifest's checksum stands for its files only where `check_files` has compared them. Formats without native
    code need no trust. Raises `ArtefactError`, with each file and its checksum.
    """
    native = manifest.formats[format].native_files(format)
    if not native or trust or known(manifest_sha256):
        return
    lines = [f"  {path}  sha256 {manifest.files[path].sha256}" for path in native]
    must = f"be made on this machine to run as {format!r} without more ado: that runs its native code"
    remedy = "if you trust whoever made it, say so: --trust on the command line, trust=True in Python"
    raise ArtefactError(
        message(f"artefact {manifest.model.name}", must, "one from elsewhere", remedy) + ":\n" + "\n".join(lines)
    )
