"""Build and load of the native CPU kernels: compiled with the system's C++ compiler on first use, then cached."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

import torch

from sparvar import env
from sparvar.errors import KernelError, SparvarWarning, message
from sparvar.kernels.common.gpu import use_triton

__all__ = [
    "NativeStatus",
    "adopt_library",
    "implementation",
    "native_status",
    "native_symbol",
    "sources_digest",
    "use_native",
]

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
REMEDY = "install a C++17 compiler (g++ or clang++) or name one in SPARVAR_CXX, or set SPARVAR_CPU_KERNELS=portable"


@dataclass(frozen=True)
class NativeStatus:
    """What `sparvar doctor` shows of the CPU kernels.

    `usable`: compiled kernels are loaded. `reason`: why they are not, else empty. `isa`: avx512, avx2, neon or generic.
    `implementation`: what an op on the CPU runs, `native` or `portable`.
    """

    usable: bool
    reason: str
    compiler: str
    library: str
    isa: str
    implementation: Implementation


@dataclass(frozen=True)
class _Loaded:
    library: ctypes.CDLL
    path: Path
    compiler: str
    isa: str


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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that parallel processes compile once. Without fcntl the atomic rename must do."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def _compile(command: list[str], target: Path) -> str:
    """Compile into `target` through a temporary name. Return the compiler's complaint, empty on success."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".tmp")
    os.close(handle)
    try:
        code, output = _run([*command, *map(str, _sources()), "-o", temporary])
        if code == 0:
            os.replace(temporary, target)
            return ""
        return output[-2000:] or f"exit status {code}"
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


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


def _load(path: Path, compiler: str) -> _Loaded:
    library = ctypes.CDLL(str(path))
    library.sparvar_use_openmp.restype = None
    library.sparvar_use_openmp.argtypes = [ctypes.c_void_p]
    library.sparvar_use_openmp(_torch_openmp())
    library.sparvar_isa.restype = ctypes.c_char_p
    return _Loaded(library, path, compiler, library.sparvar_isa().decode())


def _build_with(compiler: str) -> tuple[_Loaded | None, str]:
    words = shlex.split(compiler)
    if not words or shutil.which(words[0]) is None:
        return None, f"{compiler}: not found"
    code, version = _run([*words, "--version"])
    if code:
        return None, f"{compiler}: {version}"
    folder = env.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return None, f"cache folder: {error} (SPARVAR_CACHE_DIR)"
    complaint = ""
    for architecture in ARCHITECTURE_FLAGS:
        command = [*words, *FLAGS, *architecture]
        path = folder / f"kernels-{_key(command, version)}.so"
        try:
            with _locked(path.with_suffix(".lock")):
                if path.exists():
                    with contextlib.suppress(OSError, AttributeError):  # damaged: compiled again below
                        return _load(path, compiler), ""
                complaint = _compile(command, path)
                if not complaint:
                    return _load(path, compiler), ""
        except (OSError, AttributeError) as error:
            complaint = str(error)
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


def adopt_library(path: Path) -> None:
    """Use a library that was compiled from these sources elsewhere, where none is loaded yet: nothing is compiled then.

    Raises `KernelError` if it cannot be loaded.
    """
    with _lock:
        asked = env.cpu_kernels()
        if _Choice.loaded is not None or asked == "portable":
            return
        try:
            _Choice.loaded = _load(path, "compiled elsewhere")
        except (OSError, AttributeError) as error:
            raise KernelError(message(str(path), "be a library of CPU kernels", error, REMEDY)) from error
        _Choice.asked = asked


def use_native() -> bool:
    """Return whether ops on the CPU run native code; builds it on the first call.

    Raises `KernelError` where SPARVAR_CPU_KERNELS=native and it cannot be built. With `auto` it warns once.
    """
    loaded, reason = _resolve()
    if loaded:
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
    return NativeStatus(True, "", loaded.compiler, str(loaded.path), loaded.isa, "native")


def implementation(device: torch.device | str) -> Implementation:
    """Return what ops on `device` run: `native` (compiled CPU kernels), `triton`, or `portable` (torch ops)."""
    device = torch.device(device)
    if torch.cuda.is_available() and use_triton(device):
        return "triton"
    return "native" if device.type == "cpu" and use_native() else "portable"
