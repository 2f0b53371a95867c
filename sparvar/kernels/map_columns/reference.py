"""Oracle of `map_columns`: Python sets of (scale, y, x), the prefix as scale 0, one list at a time, with fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

from sparvar.kernels.map_columns.spans import ColumnMap


def _source_axis(g: int, count: int, count_source: int) -> int:
    place = (g + Fraction(1, 2)) / count * count_source - Fraction(1, 2)
    return min(max(floor(place + Fraction(1, 2)), 0), count_source - 1)


def run(lists: Sequence[Sequence[int]], mapping: ColumnMap) -> list[list[int]]:
    """Map the lists of the source tiles of one batch row and head to those of the target tiles."""
    (heights, widths, prefix), source_scale, target_scale, (tile_h, tile_w), index_map, sink_scales, window = mapping
    tokens = [(0, 0, i) for i in range(prefix)]
    for scale in range(1, target_scale + 1):
        tokens += [(scale, y, x) for y in range(heights[scale - 1]) for x in range(widths[scale - 1])]
    number = {token: i for i, token in enumerate(tokens)}

    grid_h, grid_w = heights[target_scale - 1], widths[target_scale - 1]
    rows, columns = -(-grid_h // tile_h), -(-grid_w // tile_w)
    source_rows, source_columns = -(-heights[source_scale - 1] // tile_h), -(-widths[source_scale - 1] // tile_w)
    result = []
    for ty in range(rows):
        for tx in range(columns):
            source = _source_axis(ty, rows, source_rows) * source_columns + _source_axis(tx, columns, source_columns)
            kept = {token for token in tokens if token[0] <= sink_scales}
            for key in lists[source]:
                scale, y, x = tokens[key]
                if scale <= sink_scales or index_map == "identity":
                    kept.add((scale, y, x))
                    continue
                to = target_scale - (source_scale - scale)
                h, w, h_to, w_to = heights[scale - 1], widths[scale - 1], heights[to - 1], widths[to - 1]
                corner = floor(Fraction(y * h_to, h)), floor(Fraction(x * w_to, w))
                kept.add((to, *corner))
                if index_map == "footprint":
                    kept |= {
                        (to, v, u)
                        for v in range(corner[0], floor(Fraction((y + 1) * h_to, h)))
                        for u in range(corner[1], floor(Fraction((x + 1) * w_to, w)))
                    }
            if window:
                reach = window // 2
                for y in range(ty * tile_h, min(ty * tile_h + tile_h, grid_h)):
                    for x in range(tx * tile_w, min(tx * tile_w + tile_w, grid_w)):
                        kept |= {
                            (target_scale, v, u)
                            for v in range(max(y - reach, 0), min(y + reach, grid_h - 1) + 1)
                            for u in range(max(x - reach, 0), min(x + reach, grid_w - 1) + 1)
                        }
            result.append(sorted(number[token] for token in kept))
    return result
