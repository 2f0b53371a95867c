"""The geometry of a plan as the kernels take it."""

from __future__ import annotations

from sparvar.kernels import ColumnMap, LocalWindows, QueryTiles, Schedule
from sparvar.scale_plans import Plan


def _schedule(plan: Plan) -> Schedule:
    return Schedule.of(plan.schedule, plan.prefix)


def query_tiles(plan: Plan, scale: int) -> QueryTiles:
    """Return the query tiles of a scale."""
    return QueryTiles(plan.schedule[scale - 1], plan.tile)


def column_map(plan: Plan, scale: int) -> ColumnMap:
    """Return how CS4A's columns are carried from the decision scale, which the plan must have, to ``scale``."""
    source, window = plan.decision_scale, plan.cs4a[scale].window
    assert source is not None
    return ColumnMap(_schedule(plan), source, scale, plan.tile, plan.index_map, plan.sink_scales, window)


def local_windows(plan: Plan, scale: int) -> LocalWindows:
    """Return what CSLA's query tiles see at ``scale``."""
    return LocalWindows(_schedule(plan), scale, plan.tile, tuple(plan.windows_list(scale)), plan.sink_scales)
