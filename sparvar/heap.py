"""How the C library keeps freed memory, chosen for work whose seconds count less than its memory."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from sparvar.errors import OptionError, message

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
LARGE = 1 << 20
SMALL = 64 << 10
"""Blocks below it are left to the heap, whatever is asked."""
MOST_KEPT = 32 << 20
"""The threshold that glibc, left to itself, learns from a generation: its greatest one. It trims at twice that."""


@contextlib.contextmanager
def mmap_large_blocks(least: int = LARGE) -> Iterator[None]:
    """Within it every block of at least ``least`` bytes is mapped by itself, and freed to the system.

    glibc learns from freed blocks to keep ever larger ones in its heap. Where compilation and observation leave small
    objects among them, later tensors do not fit into the holes, and the heap grows from generation to generation. In
    return every block is touched anew, so generations that are timed run outside. Where the C library is another one
    nothing changes.
    """
    if not _set(least):
        yield
        return
    try:
        yield
    finally:
        # Once set, a threshold learns no more: what it would have learnt.
        _set(MOST_KEPT, 2 * MOST_KEPT)


def can_return() -> bool:
    """Whether the C library can be told to give freed memory back."""
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallopt")
    except OSError:
        return False


def return_freed() -> None:
    """Let freed blocks go back to the system at once, in this process from now on.

    Holes that the heap already has are still filled, so that this wants to be asked early.

    Raises:
        OptionError: the C library is not glibc.
    """
    if not _set(SMALL):
        must = "be asked where the C library is glibc, which can be told to give freed memory back"
        raise OptionError(message("low memory", must, "another C library", "leave it out"))


def _set(mapped: int, trimmed: int | None = None) -> bool:
    """Set both thresholds in bytes; False where there are none."""
    if not can_return():
        return False
    set_option = ctypes.CDLL("libc.so.6").mallopt
    set_option(MMAP_THRESHOLD, mapped)
    set_option(TRIM_THRESHOLD, mapped if trimmed is None else trimmed)
    return True
