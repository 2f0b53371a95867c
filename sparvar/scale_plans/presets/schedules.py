"""Schedules of published models, as facts: grids (h, w) per scale."""

from __future__ import annotations

from collections.abc import Sequence

from sparvar.errors import PlanError, message
from sparvar.scale_plans.sets import Schedule

# Infinity: 13 grids per aspect ratio h/w; of smaller sizes the first 7, 10 or 12.
_INFINITY = {
    "1": "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    "1.25": "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    "1.333": "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    "1.5": "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    "1.75": "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    "2": "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    "2.5": "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    "3": "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
INFINITY_SIZES = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}


def parse_schedule(text: str) -> Schedule:
    """``"1x1 2x3"`` as grids. Raises `PlanError` on anything else."""
    grids = []
    for word in text.split():
        h, times, w = word.partition("x")
        if not (times and h.isdigit() and w.isdigit()):
            raise PlanError(message("schedule", "be grids like 1x1 2x2 4x3", word), "schedule")
        grids.append((int(h), int(w)))
    return tuple(grids)


def squares(sides: Sequence[int]) -> Schedule:
    """Square grids."""
    return tuple((side, side) for side in sides)


def infinity_schedules() -> dict[str, Schedule]:
    """Every schedule of Infinity by ``size/ratio``, the ratio as height over width: ``1M/1``, ``0.25M/1.333``.

    15 ratios (eight and the inverses of seven, to three digits as upstream cuts them) at four sizes.
    """
    found: dict[str, Schedule] = {}
    for size, scales in INFINITY_SIZES.items():
        for ratio, text in _INFINITY.items():
            grids = parse_schedule(text)[:scales]
            found[f"{size}/{ratio}"] = grids
            if ratio != "1":
                found[f"{size}/{int(1000 / float(ratio)) / 1000:g}"] = tuple((w, h) for h, w in grids)
    return found


VAR_256 = squares((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
VAR_512 = squares((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
#: Without the 1x1 scale: HART puts 300 text tokens there.
HART_1024 = squares((2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64))
HART_TEXT_TOKENS = 300
