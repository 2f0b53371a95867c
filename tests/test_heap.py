"""Freed memory goes back to the system while it is asked to, in a process of its own: the heap keeps its habits."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sparvar.errors import OptionError
from sparvar.heap import mmap_large_blocks, return_freed

ROOT = Path(__file__).resolve().parents[1]
# Blocks of 2 MiB with small objects between them, as compilation leaves them among tensors.
HOLES = """
import contextlib, ctypes, sys
from sparvar.heap import return_freed, mmap_large_blocks

libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

def block(size):
    made = libc.malloc(size)
    ctypes.memset(made, 1, size)
    return made

libc.free(block(30 << 20))  # from this the heap learns to keep blocks of up to 30 MiB
before = resident()
if sys.argv[1] == "return_freed":
    return_freed()
with mmap_large_blocks() if sys.argv[1] == "mmap_large_blocks" else contextlib.nullcontext():
    blocks = []
    for _ in range(50):
        blocks.append(block(2 << 20))
        block(100_000)  # not so small that it fits into an old hole
    for made in blocks:
        libc.free(made)
    left = resident() - before
    print(left)
"""


def _glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not _glibc(), reason="the thresholds are glibc's")
@pytest.mark.parametrize("how", ["mmap_large_blocks", "return_freed", "plain"])
def test_gives_blocks_back_among_small_objects(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", HOLES, how], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left = float(done.stdout)
    assert left > 80 if how == "plain" else left < 20  # MiB of 100


def test_changes_nothing_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with mmap_large_blocks():
        pass
    with pytest.raises(ValueError), mmap_large_blocks():
        raise ValueError
    with pytest.raises(OptionError, match="low memory: must be asked where the C library is glibc"):
        return_freed()
