"""Shared libraries that leave a mark when they are loaded, and artefacts that hold them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.artefact.factory import CONTENTS, archive, document, files_json

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="needs Linux and a C compiler"
)
CODE = re.compile(r"\.(pt2|so|onnx)$")
CONSTRUCTOR = r"""
#include <stdio.h>
__attribute__((constructor)) static void ran(void) {
    FILE *file = fopen("%s", "w");
    if (file) fclose(file);
}
"""


def planted_library(folder: Path, mark: Path) -> bytes:
    """A shared library whose constructor makes the file ``mark``."""
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / "planted.c", folder / "planted.so"
    source.write_text(CONSTRUCTOR % mark)
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", library, source], check=True)
    return library.read_bytes()


def package(library: bytes) -> bytes:
    """An AOTInductor package as torch writes it, with this library."""
    place = "program/data/aotinductor/model/x.wrapper"
    return archive({f"{place}.so": library, f"{place}_metadata.json": b'{"AOTI_DEVICE_KEY": "cpu"}',
                    "program/archive_format": b"pt2", "program/version": b"1"})  # fmt: skip


def write(folder: Path, manifest: dict[str, Any], contents: Mapping[str, bytes]) -> None:
    """Write an artefact that requires nothing of the machine; its manifest is not checked.

    It has ``contents``, and of `CONTENTS` the data and what the manifest's formats name.
    """
    named = {path for spec in manifest["formats"].values() for path in spec.get("native", ())}
    named |= {program["file"] for spec in manifest["formats"].values() for program in spec["programs"].values()}
    data = {name: content for name, content in CONTENTS.items() if name in named or not CODE.search(name)}
    contents = data | dict(contents)
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for spec in manifest["formats"].values():
        spec["requires"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files_json(contents)}))


def with_program(format: str, file: str) -> dict[str, Any]:
    """The manifest of an artefact in one format, its first program in ``file``."""
    manifest = document()
    spec = manifest["formats"]["aoti"]
    manifest["formats"] = {format: spec}
    spec["programs"]["begin"]["file"] = file
    if format != "aoti":
        spec["native"] = []
    return manifest
