"""How many keys a plan's sparse attention touches: pure arithmetic on grids, for tables and estimates."""

from __future__ import annotations

from collections.abc import Sequence

from sparvar.scale_plans.data import PlanFields

# Multiply-adds of the column-sum pass against dense attention: Q K^T only, so half (methods, CS4A step 1).
COLUMN_SUM_COST = 0.5


def window_extents(queries: int, keys: int, tile: int, window: int) -> list[int]:
    """Cells along one axis that each tile of queries reaches through a window on another grid.

    Query y of ``queries`` looks at centre floor(y * keys / queries + 0.5), clipped to the grid, and at ``window``
    cells around it, clipped at the border (SparVAR, supplement B). A tile takes the span over its queries. One
    number per tile along the axis.
    """
    reach = window // 2
    extents = []
    for start in range(0, queries, tile):
        last = min(start + tile, queries) - 1
        low, high = (min((2 * y * keys + queries) // (2 * queries), keys - 1) for y in (start, last))
        extents.append(min(high + reach, keys - 1) - max(low - reach, 0) + 1)
    return extents


def local_keys(plan: PlanFields, scale: int, windows: Sequence[int]) -> list[tuple[int, int]]:
    """(queries of the tile, keys it reads) for every tile of a scale in raster order: sinks and windows.

    ``windows[l - 1]`` is the odd side at scale l, 0 for none; scales inside the sink span are counted once.
    """
    height, width = plan.grid(scale)
    tile_h, tile_w = plan.tile
    rows = [min(tile_h, height - start) for start in range(0, height, tile_h)]
    columns = [min(tile_w, width - start) for start in range(0, width, tile_w)]
    totals = [plan.sinks_at(scale)] * (len(rows) * len(columns))
    for source, window in enumerate(windows, start=1):
        if not window or source <= plan.sink_scales:
            continue
        source_h, source_w = plan.grid(source)
        down = window_extents(height, source_h, tile_h, window)
        across = window_extents(width, source_w, tile_w, window)
        for tile, area in enumerate(h * w for h in down for w in across):
            totals[tile] += area
    return list(zip((h * w for h in rows for w in columns), totals, strict=True))


def _mean_keys(plan: PlanFields, scale: int, windows: Sequence[int]) -> float:
    tiles = local_keys(plan, scale, windows)
    return sum(queries * keys for queries, keys in tiles) / plan.tokens(scale)


def kept_share(plan: PlanFields, scale: int, policy: str) -> float | None:
    """Share of (query, key) pairs that sparse attention of a policy computes at a scale; None where it is not sparse.

    Exact for csla. For cs4a the mapped columns are data, so it is an estimate: they are taken to fall on sinks and
    window as often as on any other key.
    """
    keys = plan.keys(scale)
    if policy == "csla" and scale in plan.csla:
        return _mean_keys(plan, scale, plan.windows_list(scale)) / keys
    if policy == "cs4a" and scale in plan.cs4a:
        windows = [0] * (scale - 1) + [plan.cs4a[scale].window]
        fixed = _mean_keys(plan, scale, windows) / keys
        return fixed + (1 - fixed) * min(1.0, plan.columns_to_keep(scale) / keys)
    return None
