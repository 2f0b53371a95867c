"""Telling pickles from data by what a file holds, whatever its name. Nothing here unpickles."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
import zlib
from typing import BinaryIO

from sparvar.artefact.manifest.paths import NEVER
from sparvar.errors import ArtefactError, message

LOOKED_AT = 1 << 20
"""Bytes from a file's beginning that are read as opcodes."""
REMEDY = "artefacts are data, a pickle runs code when it is read; get the artefact from someone else"
ACTS = {"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "STOP"}
"""Opcodes that call what was imported, or end the pickle."""
NAMES = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*")


def is_pickle(head: bytes) -> bool:
    """Whether bytes from a file's beginning are those of a pickle that `pickle.load` would act on.

    Decodes opcodes, since two bytes prove nothing: the length at the head of a safetensors file may be 0x80 0x02 too.
    A pickle is one that ends, that fills what was looked at, or that has imported something by the time it breaks,
    for by then its code has run. Without the header of protocols 2 to 5 (text can begin like protocol 0) it must have
    imported names and acted on them.
    """
    header = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    imported = False
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(head[:LOOKED_AT])):
            if opcode.name in ("GLOBAL", "INST"):
                imported |= header or bool(NAMES.fullmatch(str(argument)))
            imported |= opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            if opcode.name == "STOP" and header:
                return True
            if imported and (header or opcode.name in ACTS):
                return True
    except (ValueError, IndexError, OverflowError) as error:
        # An opcode that is none, or one that the end of what was looked at cuts off: then it may go on as a pickle.
        return header and len(head) >= LOOKED_AT and "unknown" not in str(error)
    return False


def _zip_problem(file: BinaryIO, path: str) -> str:
    """What an archive holds that it may not; empty if nothing. Raises `zipfile.BadZipFile`."""
    packaged = path.lower().endswith(".pt2")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            name = entry.filename.lower()
            if name.endswith(NEVER) and (packaged or name.endswith((".pkl", ".pickle"))):
                return f"an archive with {entry.filename!r}"
            if entry.flag_bits & 1:
                return f"an archive with {entry.filename!r}, which is encrypted"
            with archive.open(entry) as member:
                if is_pickle(member.read(LOOKED_AT)):
                    return f"an archive with the pickle {entry.filename!r}"
    return ""


def refuse_pickles(file: BinaryIO, path: str, where: str) -> None:
    """Raise `ArtefactError` if an open file is a pickle, or an archive that holds one (or Python code, in a ``.pt2``).

    ``path`` is its path in the artefact, ``where`` what messages call it.
    """
    file.seek(0)
    head = file.read(LOOKED_AT)
    if is_pickle(head):
        raise ArtefactError(message(where, "be data", "a pickle", REMEDY))
    archive = head[:4] == b"PK\x03\x04"
    if not archive and not zipfile.is_zipfile(file):
        return
    try:
        problem = _zip_problem(file, path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, zlib.error) as error:
        if archive or path.lower().endswith(".pt2"):
            raise ArtefactError(message(where, "be a whole archive", str(error), "get the artefact again")) from error
        return  # bytes at the end that only look like an archive's
    if problem:
        raise ArtefactError(message(where, "hold no pickles and no Python code", problem, REMEDY))
