"""Seconds of one site per scale and kind, measured on this machine by running the ops, and kept in a cache file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar import kernels
from sparvar.calibrate.candidates.space import Choice, Space, plan_of
from sparvar.calibrate.measure.cache import cache_file, device_text
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import Generation, SiteContext
from sparvar.runtime.geometry import query_tiles
from sparvar.runtime.site_ops import attend_columns, attention_with_stats, mapped_columns, upsampled_delta
from sparvar.scale_plans import Plan

ROUNDS, LONG_ROUNDS = 5, 3
LONG = 0.3
"""Seconds from which a call is timed in fewer rounds: it is disturbed less, and whole generations correct the rest."""
SHARES = (0.05, 0.3)
"""Budgets at which the sparse kernel is timed; between and beyond them seconds are linear in kept keys."""


@dataclass(frozen=True)
class CostTable:
    """Seconds of one site.

    Attributes:
        dense: per scale.
        decide: dense attention, column sums and selection, per scale.
        correcting: sparse attention that a deciding site with output correction runs as well: (seconds with no key,
            seconds per share of keys) per scale.
        mapping: mapping column lists to a scale, per scale.
        correction: growing the output correction to a scale, per scale.
        sparse: (seconds with no key, seconds per share of keys) per scale.
        dense_seconds: a whole dense generation through the backend; 0 until it was measured.
        extra: seconds that a sparse site takes more (or less) than its ops say, per scale: fusion, caches and dispatch,
            from whole generations.
        device: what was measured.
    """

    dense: dict[int, float] = field(default_factory=dict)
    decide: dict[int, float] = field(default_factory=dict)
    correcting: dict[int, tuple[float, float]] = field(default_factory=dict)
    mapping: dict[int, float] = field(default_factory=dict)
    correction: dict[int, float] = field(default_factory=dict)
    sparse: dict[int, tuple[float, float]] = field(default_factory=dict)
    dense_seconds: float = 0.0
    extra: dict[int, float] = field(default_factory=dict)
    device: str = ""

    def cs4a(self, scale: int, kept: float, correction: bool) -> float:
        """Seconds of a cs4a site that keeps a share ``kept`` of the keys."""
        fixed, slope = self.sparse[scale]
        grown = self.correction[scale] if correction else 0.0
        return fixed + slope * kept + self.mapping[scale] + grown + self.extra.get(scale, 0.0)

    def deciding(self, scale: int, correction: float | None) -> float:
        """Seconds that a deciding site takes more than a dense one; see `ColumnCandidate.correction`."""
        more = self.decide[scale] - self.dense[scale]
        if correction is None:
            return more
        fixed, slope = self.correcting[scale]
        return more + fixed + slope * correction

    def csla(self, scale: int, kept: float) -> float:
        """Seconds of a csla site; its lists are made once and not counted."""
        fixed, slope = self.sparse[scale]
        return fixed + slope * kept + self.extra.get(scale, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.__dict__}

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> CostTable:
        """From `as_dict` after a trip through JSON."""
        tables = {
            name: {int(scale): tuple(cost) if isinstance(cost, list) else cost for scale, cost in value.items()}
            for name, value in raw.items()
            if isinstance(value, dict)
        }
        return cls(**{**raw, **tables})


def costs_file(base: Plan, space: Space, rows: int, device: torch.device, inner: str) -> Path:
    """Where the table of these shapes is kept, see `cache_file`."""
    return cache_file(
        "costs",
        base,
        device,
        kernels=kernels.implementation(device),
        tile=base.tile,
        prefix=base.prefix,
        rows=rows,
        space=repr(space),
        inner=inner,
    )


def load(path: Path) -> CostTable | None:
    """The table of a cache file, or None where there is no readable one."""
    try:
        return CostTable.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@torch.inference_mode()
def measure(base: Plan, space: Space, rows: int, device: torch.device, dtype: torch.dtype) -> CostTable:
    """Time the ops of a site at every scale that may decide or be sparse, for ``rows`` batch rows (CFG counted)."""
    table = CostTable(device=device_text(device))
    generator = torch.Generator().manual_seed(0)
    heads, dim = base.model.heads, base.model.head_dim

    def random(length: int) -> Tensor:
        return torch.randn(rows, heads, length, dim, generator=generator).to(device, dtype)

    plan = base.replace(column_sum_stride=space.stride)
    factor = dim**-0.5
    decided: Tensor | None = None
    decision = min(space.decisions)
    setting = max(space.settings, key=lambda one: (one.sinks, one.window))  # mapping is not made cheaper than it is
    for scale in range(decision, base.scales + 1):
        query, key, value = random(base.tokens(scale)), random(base.keys(scale)), random(base.keys(scale))
        tiles = query_tiles(base, scale)
        table.dense[scale] = _seconds(partial(F.scaled_dot_product_attention, query, key, value), device)
        if scale in space.decisions:
            decide = partial(_decide, plan, scale, query, key, value, factor)
            table.decide[scale] = _seconds(decide, device)
            sums = decide()
            points = []
            for budget in SHARES:
                columns = Columns(*kernels.select_columns(sums, max(1, round(budget * base.keys(scale)))))
                attend = partial(attend_columns, query, key, value, columns, None, factor, tiles)
                points.append((budget, _seconds(attend, device)))
            table.correcting[scale] = _line(points)
            decided = sums if scale == decision else decided
        if scale == decision:
            continue
        assert decided is not None
        points = []
        for budget in SHARES:
            budgets = tuple((target, budget) for target in range(decision + 1, base.scales + 1))
            choice = Choice(("cs4a",) * len(base.layers), setting, decision, budgets=budgets)
            sparse = plan_of(base, space, choice)
            context = SiteContext(Generation(sparse, {}, _refuse), 0, scale)
            wanted = sparse.source_columns(scale)
            context.generation.columns[0, wanted] = Columns(*kernels.select_columns(decided, wanted))
            columns = mapped_columns(context, rows)
            kept = float(columns.counts.double().mean()) / base.keys(scale)
            attend = partial(attend_columns, query, key, value, columns, None, factor, tiles)
            points.append((kept, _seconds(attend, device)))
            table.mapping[scale] = _seconds(partial(mapped_columns, context, rows), device)
            context.generation.delta[0] = random(base.tokens(decision))
            table.correction[scale] = _seconds(partial(upsampled_delta, context, rows), device)
        table.sparse[scale] = _line(points)
    return table


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(seconds with no key, seconds per share of keys) of a line through two points; neither below 0."""
    (low, fast), (high, slow) = points
    slope = max(0.0, (slow - fast) / (high - low)) if high > low else 0.0
    return max(0.0, fast - slope * low), slope


def _decide(plan: Plan, scale: int, query: Tensor, key: Tensor, value: Tensor, factor: float) -> Tensor:
    _, sums, _ = attention_with_stats(plan, scale, query, key, value, factor)
    kernels.select_columns(sums, max(1, round(0.1 * sums.shape[-1])))
    return sums


def _refuse(kind: str, scale: int) -> Any:
    raise AssertionError("timing compiles nothing")


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of a few runs after one that warms up."""
    times: list[float] = []
    while len(times) <= (ROUNDS if min(times, default=0.0) < LONG else LONG_ROUNDS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
