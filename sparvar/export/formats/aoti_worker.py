"""A process that compiles programs with AOTInductor: one line ``SOURCE<tab>TARGET`` on stdin each, one answer each.

Compiling is not safe in threads, and a forked process would hold half of OpenMP; so the exporter starts these. What it
hands over is its own: nothing here ever reads an artefact.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import sparvar.kernels  # noqa: F401  the programs call its ops
from sparvar.compiler.torch_compat import compile_files, inductor_settings, package_files
from sparvar.private_files import seal

WANTED = {
    "aot_inductor.package": True,
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.enable_frame_pointer": False,
}
SETTINGS = {name: value for name, value in WANTED.items() if name in inductor_settings()}
"""Older versions of torch have no switches for what they leave out anyway."""
ROUNDED = {name: True for name in ("emulate_precision_casts",) if name in inductor_settings()}
"""For programs that compute in 16 bits. Fused ops would keep what the model rounds between them: 2e-3 in Infinity's
blocks (2e-7 with this), which is enough for a sampled bit to flip, and then for another image."""
DROPPED = (".cpp",)
"""Sources are not what a runtime needs."""


def compile_program(source: Path, target: Path) -> None:
    """Compile the exported program in ``source`` into the sealed package ``target``, whole or not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exported: ExportedProgram = torch.export.load(source)
        module = exported.module(check_guards=False)
        paths = compile_files(module, examples(exported), settings_of(exported))
    with tempfile.TemporaryDirectory() as folder:
        paths = [path for path in paths if not path.endswith(DROPPED)]
        kept = [_stripped(Path(path), Path(folder)) if path.endswith(".so") else path for path in paths]
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            package_files(temporary, kept)
            seal(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def rounds(exported: ExportedProgram) -> bool:
    """Whether a program holds 16-bit tensors."""
    metas = [node.meta.get("val") for node in exported.graph.nodes]
    tensors = [each for meta in metas for each in (meta if isinstance(meta, list | tuple) else [meta])]
    return any(getattr(each, "dtype", None) in (torch.bfloat16, torch.float16) for each in tensors)


def settings_of(exported: ExportedProgram) -> dict[str, Any]:
    """Inductor's settings for a program."""
    return SETTINGS | ROUNDED if rounds(exported) else dict(SETTINGS)


def examples(exported: ExportedProgram) -> tuple[torch.Tensor, ...]:
    """Tensors of the program's inputs; their values do not matter."""
    metas = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"]
    return tuple(torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=meta.device) for meta in metas)


def _stripped(library: Path, folder: Path) -> str:
    """A copy without symbols, of which a package is a quarter the size; the file itself where there is no strip."""
    tool = shutil.which("strip")
    if tool is None:
        return str(library)
    copy = folder / library.name
    subprocess.run([tool, "--strip-unneeded", "-o", str(copy), str(library)], check=True, capture_output=True)
    return str(copy)


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the compilers print is not an answer
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        started = time.perf_counter()
        try:
            compile_program(Path(source), Path(target))
            answer = {"seconds": time.perf_counter() - started}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}  # type: ignore[dict-item]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
