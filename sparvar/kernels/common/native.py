"""Build and load of the native CPU kernels: compiled with the system's C++ compiler on first use, then cached."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

import torch

from sparvar import env
from sparvar.errors import KernelError, OutputError, SparvarWarning, message
from sparvar.files import locked
from sparvar.kernels.common.gpu import use_triton
from sparvar.kernels.common.shared_library import load_library
from sparvar.private_files import UnsafeFileError, code_folder, read_sealed, write_sealed

Implementation = Literal["native", "triton", "portable"]

SOURCE_DIR = Path(__file__).parent.parent / "native"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
)
# Tried in order: a compiler that rejects the first spelling may know the second; the last always works.
ARCHITECTURE_FLAGS: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
EXPORTED = re.compile(r'visibility\("default"\)\)\)[^;{(]*?\b(sparvar_\w+)\(')
REMEDY = "install a C++17 compiler (g++ or clang++) or name one in SPARVAR_CXX, or set SPARVAR_CPU_KERNELS=portable"


@dataclass(frozen=True)
class NativeStatus:
    """What `sparvar doctor` shows of the CPU kernels.

    `usable`: compiled kernels are loaded. `reason`: why they are not, else empty. `isa`: avx512, avx2, neon or generic.
    `implementation`: what an op on the CPU runs, `native` or `portable`. `notes`: what the user should know of the
    cache: that a damaged library was built again, or that the folder is not private and another is used.
    """

    usable: bool
    reason: str
    compiler: str
    library: str
    isa: str
    implementation: Implementation
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Loaded:
    """A library: `data` are its bytes, `path` is where they were read or written."""

    library: ctypes.CDLL
    data: bytes = field(repr=False, compare=False)
    path: Path
    compiler: str
    isa: str
    notes: tuple[str, ...] = ()


_lock = threading.Lock()


def _cpu_features() -> str:
    """Return text that changes whenever -march=native may mean something else."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})) or platform.machine()


def _sources() -> list[Path]:
    return sorted(SOURCE_DIR.glob("*.cpp"))


def sources_digest() -> str:
    """Digest of the kernels' sources: libraries of equal digest have the same functions and argument blocks."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE_DIR.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _key(command: list[str], version: str) -> str:
    digest = hashlib.sha256(sources_digest().encode())
    digest.update("\0".join([*command, version, _cpu_features()]).encode())
    return digest.hexdigest()[:24]


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def _compile(command: list[str], folder: Path) -> tuple[bytes, str]:
    """Compile in a private folder. Return the library's bytes, or none and the compiler's complaint."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".compiling-") as place:
        target = Path(place) / "kernels.so"
        code, output = _run([*command, *map(str, _sources()), "-o", str(target)])
        if code:
            return b"", output[-2000:] or f"exit status {code}"
        return target.read_bytes(), ""


@lru_cache(maxsize=1)
def _exported() -> tuple[str, ...]:
    """The functions that a library of these sources has."""
    return tuple(sorted({name for path in _sources() for name in EXPORTED.findall(path.read_text(encoding="utf-8"))}))


def _torch_openmp() -> int:
    """Return the address of GOMP_parallel in the OpenMP runtime loaded with torch, 0 where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        names = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "/lib" in line and "omp" in line}
        runtimes = sorted(name for name in names if Path(name).name.startswith(("libgomp", "libiomp", "libomp")))
        if len(runtimes) == 1:  # with several it is unclear which one torch's threads belong to
            function = ctypes.CDLL(runtimes[0], mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _load(data: bytes, path: Path, compiler: str, notes: tuple[str, ...] = ()) -> _Loaded:
    """Load checked bytes, which `path` names. Raises `OSError`, also where a function of these sources is missing."""
    library = load_library(data, path.name, _exported())
    library.sparvar_use_openmp.restype = None
    library.sparvar_use_openmp.argtypes = [ctypes.c_void_p]
    library.sparvar_use_openmp(_torch_openmp())
    library.sparvar_isa.restype = ctypes.c_char_p
    return _Loaded(library, data, path, compiler, library.sparvar_isa().decode(), notes)


def _cached(path: Path, compiler: str, notes: tuple[str, ...]) -> tuple[_Loaded | None, str]:
    """The library that is kept as `path`; none where there is none or it is not usable, and then what is wrong."""
    try:
        return _load(read_sealed(path), path, compiler, notes), ""
    except FileNotFoundError:
        return None, ""
    except UnsafeFileError as error:
        return None, str(error)
    except OSError as error:
        return None, message(str(path), "be a library that can be loaded", error)


def _build_with(compiler: str) -> tuple[_Loaded | None, str]:
    words = shlex.split(compiler)
    if not words or shutil.which(words[0]) is None:
        return None, f"{compiler}: not found"
    code, version = _run([*words, "--version"])
    if code:
        return None, f"{compiler}: {version}"
    try:
        folder = code_folder()
    except OSError as error:
        return None, f"cache folder: {error} (SPARVAR_CACHE_DIR)"
    notes = (folder.note,) if folder.note else ()
    complaint = ""
    for architecture in ARCHITECTURE_FLAGS:
        command = [*words, *FLAGS, *architecture]
        path = folder.path / f"kernels-{_key(command, version)}.so"
        try:
            with locked(path.with_suffix(".lock")):
                loaded, wrong = _cached(path, compiler, notes)
                if loaded:
                    return loaded, ""
                data, complaint = _compile(command, folder.path)
                if complaint:
                    continue  # another spelling of the flags may do
                write_sealed(path, data)
            again = (*notes, f"{wrong}; it was built again") if wrong else notes
            return _load(data, path, compiler, again), ""
        except (OSError, OutputError) as error:  # a library of other flags would be no better
            return None, f"{compiler}: {error}"
    return None, f"{compiler}: {complaint}"


@lru_cache(maxsize=8)
def _build(compilers: tuple[str, ...], folder: str) -> tuple[_Loaded | None, str]:
    reasons = []
    for compiler in compilers:
        loaded, reason = _build_with(compiler)
        if loaded:
            return loaded, ""
        reasons.append(reason)
    return None, "no working C++ compiler: " + "; ".join(reasons)


@lru_cache(maxsize=1)
def _warn(reason: str) -> None:
    warnings.warn(
        f"the CPU kernels run as torch ops, several times slower: {reason}; {REMEDY}", SparvarWarning, stacklevel=4
    )


@lru_cache(maxsize=8)
def _warn_of_cache(note: str) -> None:
    warnings.warn(note, SparvarWarning, stacklevel=4)


class _Choice:
    """The loaded library and what it was chosen for; read without a lock on every call."""

    asked: str | None = None
    loaded: _Loaded | None = None


def _resolve() -> tuple[_Loaded | None, str]:
    asked = env.cpu_kernels()
    if asked == "portable":
        return None, "SPARVAR_CPU_KERNELS=portable"
    if _Choice.asked == asked and _Choice.loaded:
        return _Choice.loaded, ""
    with _lock:
        loaded, reason = _build(tuple(env.compilers()), str(env.cache_dir()))
        _Choice.loaded, _Choice.asked = loaded, asked
    return loaded, reason


def adopt_library(path: Path, sha256: str) -> None:
    """Use a library that was compiled from these sources elsewhere, where none is loaded yet: nothing is compiled then.

    Raises `KernelError` if its bytes do not have the checksum, or cannot be loaded.
    """
    with _lock:
        asked = env.cpu_kernels()
        if _Choice.loaded is not None or asked == "portable":
            return
        try:
            data = path.read_bytes()
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                raise KernelError(message(str(path), f"have sha256 {sha256[:16]}...", f"{found[:16]}..."))
            _Choice.loaded = _load(data, path, "compiled elsewhere")
        except OSError as error:
            raise KernelError(message(str(path), "be a library of CPU kernels", error, REMEDY)) from error
        _Choice.asked = asked


def use_native() -> bool:
    """Return whether ops on the CPU run native code; builds it on the first call.

    Raises `KernelError` where SPARVAR_CPU_KERNELS=native and it cannot be built. With `auto` it warns once. It also
    warns once of what is wrong with the cache.
    """
    loaded, reason = _resolve()
    if loaded:
        for note in loaded.notes:
            _warn_of_cache(note)
        return True
    asked = env.cpu_kernels()
    if asked == "native":
        raise KernelError(message("SPARVAR_CPU_KERNELS=native", "find a working C++ compiler", reason, REMEDY))
    if asked == "auto":
        _warn(reason)
    return False


@lru_cache(maxsize=32)
def _symbol(loaded: _Loaded, name: str) -> Callable[[bytes], int]:
    function = getattr(loaded.library, name)
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_char_p]
    return cast(Callable[[bytes], int], function)


def native_symbol(name: str) -> Callable[[bytes], int]:
    """Return the C function `name`, which takes one packed argument block and returns 0 or a failure code.

    ctypes releases the GIL for the length of the call. Call only after `use_native()` returned True.
    """
    loaded, reason = _resolve()
    if loaded is None:
        raise KernelError(message(name, "have native kernels", reason, REMEDY))
    return _symbol(loaded, name)


def native_status() -> NativeStatus:
    """Build or load the native kernels if allowed, and return what is in use. Never raises, never warns."""
    loaded, reason = _resolve()
    if loaded is None:
        return NativeStatus(False, reason, "", "", "", "portable")
    return NativeStatus(True, "", loaded.compiler, str(loaded.path), loaded.isa, "native", loaded.notes)


def native_library() -> bytes:
    """The bytes of the library in use, as they were checked when it was loaded. Raises `KernelError` if there is none.

    Its file may have changed or gone since.
    """
    loaded, reason = _resolve()
    if loaded is None:
        raise KernelError(message("the CPU kernels", "be compiled", reason, REMEDY))
    return loaded.data


def implementation(device: torch.device | str) -> Implementation:
    """Return what ops on `device` run: `native` (compiled CPU kernels), `triton`, or `portable` (torch ops)."""
    device = torch.device(device)
    if torch.cuda.is_available() and use_triton(device):
        return "triton"
    return "native" if device.type == "cpu" and use_native() else "portable"
