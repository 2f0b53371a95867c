"""Oracle of `local_columns`: every (query, key) pair is asked on its own, with fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

from sparvar.kernels.local_columns.windows import LocalWindows


def run(local: LocalWindows) -> list[list[int]]:
    """Return the ascending list of kept keys of every tile."""
    (heights, widths, prefix), target_scale, (tile_h, tile_w), windows, sink_scales = local
    grid_h, grid_w = heights[target_scale - 1], widths[target_scale - 1]
    across = -(-grid_w // tile_w)
    kept: dict[int, set[int]] = {}
    for y in range(grid_h):
        for x in range(grid_w):
            keys = kept.setdefault((y // tile_h) * across + x // tile_w, set(range(prefix)))
            base = prefix
            for scale in range(1, target_scale + 1):
                h, w = heights[scale - 1], widths[scale - 1]
                if scale <= sink_scales:
                    keys.update(range(base, base + h * w))
                elif side := windows[scale - 1]:
                    cy = min(floor(Fraction(y * h, grid_h) + Fraction(1, 2)), h - 1)
                    cx = min(floor(Fraction(x * w, grid_w) + Fraction(1, 2)), w - 1)
                    for v in range(cy - side // 2, cy + side // 2 + 1):
                        for u in range(cx - side // 2, cx + side // 2 + 1):
                            if 0 <= v < h and 0 <= u < w:
                                keys.add(base + v * w + u)
                base += h * w
    return [sorted(kept[g]) for g in sorted(kept)]
