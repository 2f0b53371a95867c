"""Time spent in attention, read from profiled generations.

The profiler sees every op with its own name whatever compiled it: ``aten::scaled_dot_product_attention`` in the
model's own code, ``sparvar::site_decide`` and ``sparvar::site_sparse`` in the rewritten graphs. The site ops include
the mapping of indices, so nothing that sparse attention costs is left out.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from sparvar.errors import CaptureError, message
from sparvar.scale_plans import Plan

DENSE = "aten::scaled_dot_product_attention"
SITES = {"decide": "sparvar::site_decide", "sparse": "sparvar::site_sparse"}


@dataclass(frozen=True)
class AttentionTime:
    """Seconds of attention over the planned (scale, layer) pairs, in one generation each.

    Attributes:
        dense: dense attention at the pairs that the plan runs sparse.
        sparse: the same pairs in the sparse generation, index mapping included.
        decide_dense: dense attention at the pairs that decide.
        decide: the same pairs in the sparse generation: dense attention, column sums and selection.
        all_dense: dense attention of the whole generation.
    """

    dense: float
    sparse: float
    decide_dense: float
    decide: float
    all_dense: float

    @property
    def speedup(self) -> float | None:
        """Dense over sparse, at the sparse pairs; None where the plan has none."""
        return self.dense / self.sparse if self.sparse else None

    @property
    def speedup_with_decision(self) -> float | None:
        """Dense over sparse, with the cost of deciding counted."""
        spent = self.sparse + self.decide
        return (self.dense + self.decide_dense) / spent if spent else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the process's standard error: the profiler's own trace points print there when it starts and ends."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _seconds(generate: Callable[[], object], names: tuple[str, ...], device: torch.device) -> dict[str, list[float]]:
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities)
    with _quiet():
        profiler.start()
    try:
        generate()
    finally:
        with _quiet():
            profiler.stop()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for event in profiler.events() or ():
        if event.name in found:
            spent = event.device_time_total if device.type == "cuda" else event.cpu_time_total
            found[event.name].append((event.time_range.start, spent * 1e-6))
    return {name: [spent for _, spent in sorted(events)] for name, events in found.items()}


def _quicker(one: list[float], other: list[float]) -> list[float]:
    return [min(pair) for pair in zip(one, other, strict=False)]


def attention_time(
    plan: Plan, dense: Callable[[], object], sparse: Callable[[], object], device: torch.device
) -> AttentionTime:
    """Profile two dense and two sparse generations, in turns.

    Raises:
        CaptureError: the generations do not call attention once per scale and layer, as the plan says.
    """
    pairs = [(scale, layer) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))]
    kinds = [plan.kind(scale, layer) for scale, layer in pairs]
    own = _seconds(dense, (DENSE,), device)[DENSE]
    ours = _seconds(sparse, tuple(SITES.values()), device)
    # Once more in turns, and the quicker time of each call: a disturbance then has to hit the same call twice.
    own = _quicker(own, _seconds(dense, (DENSE,), device)[DENSE])
    again = _seconds(sparse, tuple(SITES.values()), device)
    ours = {name: _quicker(ours[name], again[name]) for name in ours}
    for name, got, expected in [
        (DENSE, len(own), len(pairs)),
        *((op, len(ours[op]), kinds.count(kind)) for kind, op in SITES.items()),  # type: ignore[arg-type]
    ]:
        if got != expected:
            raise CaptureError(message(f"profile of a generation, {name}", f"have {expected} calls", got))
    return AttentionTime(
        dense=sum(spent for spent, kind in zip(own, kinds, strict=True) if kind == "sparse"),
        sparse=sum(ours[SITES["sparse"]]),
        decide_dense=sum(spent for spent, kind in zip(own, kinds, strict=True) if kind == "decide"),
        decide=sum(ours[SITES["decide"]]),
        all_dense=sum(own),
    )
