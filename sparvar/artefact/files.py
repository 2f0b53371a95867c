"""The files of an artefact on disk: which may be there, whether they are whole, and the single-file form."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from sparvar import env
from sparvar.artefact.manifest.paths import clashes, path_problem, refused_name
from sparvar.artefact.manifest.reading import parse_manifest, read_manifest
from sparvar.artefact.manifest.schema import LARGEST, MANIFEST, FileSpec, Manifest
from sparvar.artefact.pickles import refuse_pickles
from sparvar.errors import ArtefactError, OutputError, SparvarWarning, message
from sparvar.files import locked, make_folder, output_error, replacing
from sparvar.private_files import UnsafeFileError, code_folder, not_private, tighten

CHUNK = 1 << 20
AGAIN = "the artefact is damaged: get it again, or export it again"
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def check_files(folder: Path | str, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Check an artefact's folder against its manifest.

    The size of every file and that none of them is a link or a pickle is always checked, the sha256 of ``names``
    (paths of the manifest; all if None). Files that the manifest does not have are left alone, unless they are native
    code, Python code or pickles. Raises `ArtefactError`.
    """
    folder = Path(folder)
    hashed = set(manifest.files) if names is None else set(names)
    for name in sorted(hashed - set(manifest.files)):
        raise ArtefactError(message(str(folder), f"have {name!r} in its manifest", "no such entry"))
    try:
        found = dict(_walk(folder))
        for path, spec in manifest.files.items():
            if path not in found:
                raise ArtefactError(message(str(folder / path), "be there", "no file", AGAIN))
            _check_size(str(folder / path), spec, found[path])
        for path in found:
            if path not in manifest.files and path != MANIFEST and refused_name(path):
                must = "be named by the manifest, as all code and all binary files of an artefact"
                raise ArtefactError(message(str(folder / path), must, "a file that nobody knows", "delete it"))
            with _open(folder / path) as file:
                refuse_pickles(file, path, str(folder / path))
                if path in hashed:
                    file.seek(0)
                    _check_hash(str(folder / path), manifest.files[path], _sha256(file))
    except OSError as error:
        got = error.strerror or str(error)
        raise ArtefactError(message(str(error.filename or folder), "be readable", got)) from error


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Yield path and size of every file. Raises `ArtefactError` at links and at what is neither file nor folder."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_symlink() or getattr(entry, "is_junction", bool)():
                remedy = "copy the artefact with its links followed (cp -rL)"
                raise ArtefactError(message(entry.path, "be a file or a folder", "a link", remedy))
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield below + entry.name, entry.stat(follow_symlinks=False).st_size
            else:
                raise ArtefactError(message(entry.path, "be a file or a folder", "something else"))


def _open(path: Path) -> BinaryIO:
    """Open for reading; a link that has been put there meanwhile is an error."""
    return open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)), "rb")


def _check_size(where: str, spec: FileSpec, size: int) -> None:
    if size != spec.bytes:
        raise ArtefactError(message(where, f"have {spec.bytes} bytes", str(size), AGAIN))


def _check_hash(where: str, spec: FileSpec, found: str) -> None:
    if found != spec.sha256:
        raise ArtefactError(message(where, f"have sha256 {spec.sha256[:16]}...", f"{found[:16]}...", AGAIN))


def _sha256(source: IO[bytes], write: Callable[[bytes], object] = lambda chunk: None) -> str:
    """Read to the end, hand every chunk to ``write``, and return the checksum."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        write(chunk)
    return digest.hexdigest()


def pack(folder: Path | str, file: Path | str) -> None:
    """Write an artefact's folder as one file: an uncompressed zip of the manifest and the files that it names.

    Equal folders give equal files. Raises `ArtefactError` where the folder is damaged, `OutputError` where ``file``
    cannot be written; there is then no new file, and one that was there is as it was.
    """
    folder, file = Path(folder), Path(file)
    manifest, digest = read_manifest(folder)
    check_files(folder, manifest, ())
    with replacing(file) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in (MANIFEST, *sorted(manifest.files)):
            source = folder / path
            info = zipfile.ZipInfo(path, LONG_AGO)
            info.create_system = 3  # permissions are POSIX's, on every system
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with _open(source) as stream:
                info.file_size = os.fstat(stream.fileno()).st_size
                with archive.open(info, "w") as member:
                    found = _sha256(stream, member.write)
            spec = FileSpec(digest, info.file_size) if path == MANIFEST else manifest.files[path]
            _check_hash(str(source), spec, found)


def unpack(file: Path | str) -> Path:
    """Return the folder with what a single-file artefact holds, unpacked on first use.

    The folder is ``artefacts/SHA256 OF THE MANIFEST`` in the folder of code (`code_folder`), for native code is loaded
    from it. What is there already is checked as a whole, and unpacked again if it is damaged or if others can write
    any of it. Two processes do not unpack at once. The archive may hold plain uncompressed files
    only, under paths that stay inside; those that the manifest does not name are left out.

    Raises:
        ArtefactError: the file is no artefact, damaged, or unsafe.
        OutputError: the cache cannot be written; no part of the artefact is left in it.
    """
    file = Path(file)
    try:
        with open(file, "rb") as stream, zipfile.ZipFile(stream) as archive:
            entries = _entries(archive, file, os.fstat(stream.fileno()).st_size)
            return _unpack(archive, entries, file)
    except zipfile.BadZipFile as error:
        raise ArtefactError(message(str(file), "be an artefact in one file", str(error), AGAIN)) from error
    except (OSError, EOFError, NotImplementedError, zlib.error) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise ArtefactError(message(str(file), "be a readable artefact in one file", got)) from error


def _entries(archive: zipfile.ZipFile, file: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """The files in an archive by path. Raises `ArtefactError` where one is unsafe."""
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        # `filename` has been changed where the system separates paths otherwise, or at a zero byte.
        name = info.orig_filename
        where = f"{file}: {name!r}"
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArtefactError(message(where, "be a file", "a link" if kind == stat.S_IFLNK else "something else"))
        if problem := path_problem(name.removesuffix("/")):
            raise ArtefactError(message(where, "be a relative path that stays inside the artefact", problem))
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            got = "encrypted" if info.flag_bits & 1 else "compressed"
            raise ArtefactError(message(where, "be stored as it is", got, "pack the folder with sparvar"))
        total += info.file_size
        if total > size:
            raise ArtefactError(message(str(file), f"hold less than its own {size} bytes", f"{total} or more", AGAIN))
        if name.endswith("/"):
            continue
        if name in entries:
            raise ArtefactError(message(where, "be there once", "twice"))
        entries[name] = info
    if clash := clashes(entries):
        raise ArtefactError(message(str(file), "hold every file once, up to case", clash))
    if MANIFEST not in entries or entries[MANIFEST].file_size > LARGEST:
        got = "none" if MANIFEST not in entries else f"one of {entries[MANIFEST].file_size} bytes"
        raise ArtefactError(message(str(file), f"hold a {MANIFEST}", got, "name a file that sparvar export wrote"))
    return entries


def _unpack(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], file: Path) -> Path:
    data = archive.read(entries[MANIFEST])
    manifest = parse_manifest(data, f"{file}: {MANIFEST}")
    for path, spec in manifest.files.items():
        if path not in entries:
            raise ArtefactError(message(f"{file}: {path!r}", "be there", "no file", AGAIN))
        _check_size(f"{file}: {path!r}", spec, entries[path].file_size)
    for path in entries:
        if path not in manifest.files and path != MANIFEST and refused_name(path):
            must = "be named by the manifest, as all code and all binary files of an artefact"
            raise ArtefactError(message(f"{file}: {path!r}", must, "a file that nobody knows"))
    above = _unpacked()
    folder = above / hashlib.sha256(data).hexdigest()
    with locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            with contextlib.suppress(ArtefactError):  # damaged: unpacked again below
                _check_private(folder)
                check_files(folder, manifest)
                return folder
        with _new_folder(folder) as fresh:
            (fresh / MANIFEST).write_bytes(data)
            (fresh / MANIFEST).chmod(0o600)
            for path, spec in manifest.files.items():
                with archive.open(entries[path]) as member:
                    found = _extract(member, fresh / path)
                _check_hash(f"{file}: {path!r}", spec, found)
            check_files(fresh, manifest, ())
    return folder


def _unpacked() -> Path:
    """The folder of unpacked artefacts; warns where it is not in the cache. Raises `OutputError`."""
    try:
        place = code_folder()
        above = place.path / "artefacts"
        tighten(above)
    except UnsafeFileError as error:
        must, remedy = f"have a private folder of artefacts: it must {error.must}", "delete it"
        raise OutputError(message(str(place.path), must, error.got, remedy)) from error
    except OSError as error:
        raise output_error(env.cache_dir() / "artefacts", error) from error
    if place.note:
        warnings.warn(place.note, SparvarWarning, stacklevel=4)
    return above


def _check_private(folder: Path) -> None:
    """Raise `ArtefactError` where others can write a folder or file of an unpacked artefact."""
    for path in (folder, *folder.rglob("*")):
        if problem := not_private(path.lstat()):
            raise ArtefactError(message(str(path), *problem))


def _extract(member: IO[bytes], target: Path) -> str:
    """Copy to a new file, return the checksum."""
    make_folder(target.parent)
    with open(target, "xb") as file:
        found = _sha256(member, file.write)
    target.chmod(0o600)  # until now the folder kept others out
    return found


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` at the end; if anything fails it is deleted.

    Its name is always the same, so that what a killed process left goes away with the next one. To be called under
    the folder's lock. Raises `OutputError`.
    """
    fresh = folder.with_name(f".{folder.name}.part")
    try:
        try:
            _remove(fresh)
            fresh.mkdir(0o700)
            yield fresh
            _remove(folder)
            os.replace(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    except OSError as error:
        raise output_error(folder, error) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
