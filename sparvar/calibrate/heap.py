"""How the C library keeps freed memory, chosen for work whose seconds do not count."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
LARGE = 1 << 20
MOST_KEPT = 32 << 20
"""The threshold that glibc, left to itself, learns from a generation: its greatest one. It trims at twice that."""


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """Within it every block of at least `LARGE` bytes is mapped by itself, and freed to the system.

    glibc learns from freed blocks to keep ever larger ones in its heap. Where compilation and observation leave small
    objects among them, later tensors do not fit into the holes, and the heap grows from generation to generation. In
    return every block is touched anew, so generations that are timed run outside. Where the C library is another one
    nothing changes.
    """
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        yield
        return
    set_option(MMAP_THRESHOLD, LARGE)
    set_option(TRIM_THRESHOLD, LARGE)
    try:
        yield
    finally:
        # Once set, a threshold learns no more: what it would have learnt.
        set_option(MMAP_THRESHOLD, MOST_KEPT)
        set_option(TRIM_THRESHOLD, 2 * MOST_KEPT)
