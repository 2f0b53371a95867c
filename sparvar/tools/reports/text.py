"""Numbers as the commands and pages write them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable


def plural(number: int, what: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def numbers(ascending: Iterable[int]) -> str:
    """Ascending whole numbers as ``0 to 3, 5``."""
    runs = []
    for _, run in itertools.groupby(enumerate(ascending), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        join = " to " if len(members) > 2 else ", "
        runs.append(join.join(map(str, dict.fromkeys((members[0], members[-1])))))
    return ", ".join(runs)


def grid_text(grid: Iterable[int]) -> str:
    """``24x32``, height first."""
    return "x".join(map(str, grid))


def percent(share: float, digits: int = 3) -> str:
    """A share as per cent, ``12.5 %``."""
    return f"{100 * share:.{digits}g} %"


def seconds(value: float | None) -> str:
    """Seconds to three digits, without an exponent."""
    if value is None:
        return "not measured"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def decibels(value: float) -> str:
    """PSNR, which images that are equal do not have."""
    return f"{value:.1f} dB" if math.isfinite(value) else "identical"


def mebibytes(value: int | None) -> str:
    """Bytes as MiB."""
    return f"{value / 2**20:.0f} MiB" if value is not None else "not measured"


def faster(speedup: float | None) -> str:
    """``2.50x faster``, or ``1.20x slower`` where it is."""
    if speedup is None:
        return "-"
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def change(before: int | None, after: int | None) -> str:
    """Relative change in per cent, with its sign."""
    return f"{100 * (after / before - 1):+.0f} %" if before and after is not None else "-"
