"""AOTInductor packages: one per program, compiled by several processes, kept between attempts."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from torch.export import ExportedProgram

import sparvar.kernels
from sparvar.compiler.torch_compat import without_examples
from sparvar.errors import ArtefactError, SparvarWarning, message
from sparvar.export.formats.aoti_worker import settings_of
from sparvar.export.trace import Program
from sparvar.private_files import UnsafeFileError, read_sealed
from sparvar.progress import Silent, TaskProgress
from sparvar.version import __version__

FULL = os.strerror(errno.ENOSPC)
_saving = threading.Lock()
"""Saving registers a reducer for a moment: two threads at once fail."""


def program_key(exported: ExportedProgram) -> str:
    """What a compiled program depends on: its graph with all shapes, and the versions that compile it."""
    lines = [torch.__version__, __version__, *_machine(), f"{sorted(settings_of(exported).items())}"]
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        shapes = [
            f"{each.dtype}{list(each.shape)}{each.stride()}{each.device}" for each in values if hasattr(each, "stride")
        ]
        lines.append(f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {shapes}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]


@functools.cache
def _machine() -> list[str]:
    """What compiled code depends on beside its graph: processors, and the Triton kernels behind the ops."""
    found = [torch.backends.cpu.get_cpu_capability()]
    if torch.cuda.is_available():
        found += [f"{torch.cuda.get_device_capability()}", f"{torch.version.cuda}"]
        kernels = Path(sparvar.kernels.__file__).parent
        found += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kernels.rglob("*.py"))]
    return found


def compile_all(
    programs: Mapping[str, Program],
    folder: Path,
    jobs: int = 0,
    progress: TaskProgress | None = None,
) -> dict[str, Path]:
    """Compile every program into ``folder`` and return the packages by program's name.

    Packages that are there already, from an attempt that was stopped, are used again: their names hold `program_key`.
    One that is damaged, or that others could have written, is compiled again, with a warning: it would be run here.

    Args:
        programs: by name.
        folder: is made.
        jobs: processes; as many as the machine has cores, at most one per 4 GB of memory, if 0.
        progress: told of each that is finished.

    Raises:
        ArtefactError: a program does not compile; those that did stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: folder / f"{name}.{program_key(program.exported)}.pt2" for name, program in programs.items()}
    missing = {name: path for name, path in targets.items() if not _usable(path)}
    done, lock, told = len(targets) - len(missing), threading.Lock(), progress or Silent()
    jobs = min(jobs or default_jobs(), max(1, len(missing)))
    workers: Queue[_Worker] = Queue()
    for _ in range(jobs if missing else 0):
        workers.put(_Worker())

    def one(name: str) -> None:
        nonlocal done
        worker = workers.get()
        try:
            worker.compile(programs[name].exported, missing[name], name)
        finally:
            workers.put(worker)
        with lock:
            done += 1
            told.step(f"compiled {name} ({done} of {len(targets)})", done / len(targets))

    try:
        with ThreadPoolExecutor(jobs) as pool:
            # The largest scales first: they take longest.
            order = sorted(missing, key=lambda name: -programs[name].scale)
            futures = [pool.submit(one, name) for name in order]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what was not begun is not begun any more
                raise
    finally:
        while not workers.empty():
            workers.get().stop()
    return targets


def _usable(path: Path) -> bool:
    """Whether a package is there, as it was sealed. Warns where it is another."""
    try:
        read_sealed(path)
    except FileNotFoundError:
        return False
    except UnsafeFileError as error:
        warnings.warn(f"{error}; it is compiled again", SparvarWarning, stacklevel=3)
        return False
    return True


def disk_error(text: str) -> OSError:
    """What a library or a compiler says of the disk, as the error that the system gave it."""
    code = errno.ENOSPC if FULL in text else errno.EIO
    return OSError(code, FULL if code == errno.ENOSPC else text)


def default_jobs() -> int:
    """Processes that the machine has cores and memory for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return max(1, min(os.cpu_count() or 1, memory // 4_000_000_000 or 1))


class _Worker:
    """One compiling process."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sparvar.export.formats.aoti_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def compile(self, exported: ExportedProgram, target: Path, name: str) -> None:
        """Compile one program.

        Raises:
            ArtefactError: the compiler says no, or the process ended.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "program.pt2"
            with without_examples(exported), _saving:  # the weights need not travel
                torch.export.save(exported, source)
            try:
                process.stdin.write(f"{source}\t{target}\n")
                process.stdin.flush()
                answer: dict[str, Any] = json.loads(process.stdout.readline() or '{"error": ""}')
            except BrokenPipeError:
                answer = {"error": ""}
        if "error" in answer:
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-8:]).strip()
            reason = answer["error"] or f"the compiling process ended ({process.poll()})"
            if FULL in reason + tail:
                raise disk_error(FULL)
            remedy = f"the process said: {tail}" if tail else "see the message"
            raise ArtefactError(message(f"program {name}", "compile with AOTInductor", reason, remedy))

    def stop(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
