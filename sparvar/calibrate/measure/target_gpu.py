"""Predicted seconds of one site on a GPU that is named and need not be there: a roofline, never a measurement."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sparvar.calibrate.candidates.space import Choice, Space, plan_of
from sparvar.calibrate.measure.costs import SHARES, CostTable
from sparvar.compiler.find_sites import find_candidates
from sparvar.kernels import Gpu, SiteWork, Work, gpu_fit, map_capacity, roofline_seconds
from sparvar.kernels.common.torch_compat import flop_counter
from sparvar.progress import Progress, Silent
from sparvar.runtime.geometry import column_map
from sparvar.scale_plans import Plan

TARGET_DTYPE = torch.bfloat16
"""Models run in bfloat16 on the GPUs of the static table, also those that are observed in float32 on a CPU."""
SLOW_COMPILE = 3.0
"""Seconds of compiling for the target from which they are mentioned."""

ENDS = (SHARES[0], 1.0)
"""Shares of keys through which seconds of the sparse kernel are a line, which with all keys is the roofline itself."""

_PRODUCTS = ("aten.bmm", "aten.baddbmm")


def work_outside_attention(
    model: nn.Module, draw: Callable[[], object], scales: int, dtype: torch.dtype = TARGET_DTYPE
) -> Work:
    """FLOPs of a generation outside the attention of sites, and bytes of parameters that it reads.

    ``draw`` generates once, with the CFG rows that it always has; the matrix products and convolutions that run are
    counted, on whatever device they do. At a site, products of two activations are its attention and left out; the
    products of modules in it, such as its projections, are not, and neither is attention elsewhere. Bytes are every
    parameter once a scale, floating ones as ``dtype``: activations are not counted, so elementwise passes are missing.

    Raises:
        What ``draw`` raises.
    """
    counter = _Outside([c.module for c in find_candidates(model) if c.problem is None])
    with counter:
        draw()
    held = {id(parameter): parameter for parameter in model.parameters()}.values()
    sizes = (p.numel() * (dtype.itemsize if p.is_floating_point() else p.dtype.itemsize) for p in held)
    return Work(float(counter.flops), float(scales * sum(sizes)), launches=0)


class _Outside:
    """Counts FLOPs, without those of attention between a site's own entry and exit."""

    def __init__(self, sites: list[nn.Module]) -> None:
        self._counter = flop_counter()
        self._sites = sites
        self._inside: list[bool] = []
        self._since: dict[str, int] = {}
        self._attention = 0

    @property
    def flops(self) -> int:
        """FLOPs so far, without attention of sites."""
        return self._counter.get_total_flops() - self._attention

    def __enter__(self) -> _Outside:
        self._hooks = [
            handle
            for site in self._sites
            for module, inside in ((site, True), *((child, False) for child in site.children()))
            for handle in (
                module.register_forward_pre_hook(partial(self._enter, inside)),
                module.register_forward_hook(self._leave, always_call=True),
            )
        ]
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        for handle in self._hooks:
            handle.remove()

    def _count_attention(self) -> None:
        """Count what ran since a site was last entered or left as attention, if that was within one."""
        now: dict[str, int] = defaultdict(int)
        for op, flops in self._counter.get_flop_counts().get("Global", {}).items():
            if str(op) in _PRODUCTS or "attention" in str(op):
                now[str(op)] += flops
        if self._inside and self._inside[-1]:
            self._attention += sum(now.values()) - sum(self._since.values())
        self._since = now

    def _enter(self, inside: bool, *_: object) -> None:
        self._count_attention()
        self._inside.append(inside)

    def _leave(self, *_: object) -> None:
        self._count_attention()
        self._inside.pop()


def target_costs(
    base: Plan,
    space: Space,
    rows: int,
    gpu: Gpu,
    rest: Work,
    dtype: torch.dtype = TARGET_DTYPE,
    progress: Progress | None = None,
) -> CostTable:
    """The table that `costs.measure` makes by timing, and its ``dense_seconds``, as a roofline of a named GPU.

    Args:
        base: the all-dense plan.
        space: what calibration chooses from.
        rows: batch rows of a site, CFG counted.
        gpu: from `sparvar.kernels.find_gpu`.
        rest: of a generation outside attention, see `work_outside_attention`.
        dtype: of activations there, see `TARGET_DTYPE`.
        progress: told of whatever does not suit the GPU, and of a compilation that took long.

    The output correction's cost holds its reading by the sparse kernel. ``extra`` is empty: what a graph costs around
    its op is not known without the GPU.

    Raises:
        KernelError: the GPU cannot run the kernels for this dtype and head dimension, or Triton is missing.
    """
    heads, dim = base.model.heads, base.model.head_dim
    progress = progress or Silent()
    fit = gpu_fit(gpu, dtype, dim)
    if fit.seconds > SLOW_COMPILE:
        progress.step(
            f"compiled the attention kernels for {gpu.name} once, in {fit.seconds:.0f} s; nothing was run there"
        )
    for note in fit.notes:
        progress.step(f"note: {note}; the roofline does not count that")
    site = SiteWork(rows, heads, dim, dtype, gpu.hip)

    def seconds(work: Work) -> float:
        return roofline_seconds(gpu, dtype, work)

    table = CostTable(device=f"{gpu.name} (roofline)")
    decision = min(space.decisions)
    for scale in range(decision, base.scales + 1):
        keys, grid = base.keys(scale), base.grid(scale)
        table.dense[scale] = seconds(site.dense(base.tokens(scale), keys))
        if scale in space.decisions:
            table.decide[scale] = (
                seconds(site.attention_stats(base.tokens(scale), keys))
                + seconds(site.column_sums(grid, base.tile, keys, space.stride))
                + seconds(site.select_columns(_tiles(base, scale), keys, max(1, round(0.1 * keys))))
            )
            table.correcting[scale] = _line(site, base, scale, seconds)
        if scale == decision:
            continue
        table.mapping[scale] = seconds(_mapping(base, space, site, decision, scale))
        table.correction[scale] = seconds(site.grown_correction(base.grid(decision), grid)) + _read(
            site, base, scale, gpu
        )
        table.sparse[scale] = _line(site, base, scale, seconds)
    attention = sum(seconds(site.dense(base.tokens(k), base.keys(k))) for k in range(1, base.scales + 1))
    return dataclasses.replace(table, dense_seconds=len(base.layers) * attention + seconds(rest))


def _line(site: SiteWork, base: Plan, scale: int, seconds: Callable[[Work], float]) -> tuple[float, float]:
    """(seconds with no key, seconds per share of keys) of the sparse kernel."""
    (low, fast), (high, slow) = (
        (share, seconds(site.column_sparse_attention(base.grid(scale), base.tile, share * base.keys(scale))))
        for share in ENDS
    )
    slope = (slow - fast) / (high - low)
    return max(0.0, fast - slope * low), slope


def _tiles(base: Plan, scale: int) -> int:
    (height, width), tile = base.grid(scale), base.tile
    return -(-height // tile[0]) * -(-width // tile[1])


def _mapping(base: Plan, space: Space, site: SiteWork, decision: int, scale: int) -> Work:
    """Mapping as `costs.measure` times it: the widest sinks, from the first decision scale, at the larger budget."""
    budgets = tuple((target, SHARES[-1]) for target in range(decision + 1, base.scales + 1))
    setting = max(space.settings, key=lambda one: (one.sinks, one.window))
    choice = Choice(("cs4a",) * len(base.layers), setting, decision, budgets=budgets)
    plan = plan_of(base, space, choice)
    kept = plan.source_columns(scale)
    capacity = map_capacity(kept, column_map(plan, scale))
    return site.map_columns(_tiles(base, decision), _tiles(base, scale), kept, capacity, base.keys(scale))


def _read(site: SiteWork, base: Plan, scale: int, gpu: Gpu) -> float:
    """Seconds of what the sparse kernel reads more where it adds a correction."""
    grid = base.grid(scale)
    with_it, without = (site.column_sparse_attention(grid, base.tile, 1, flag).bytes for flag in (True, False))
    return (with_it - without) / (gpu.gigabytes * 1e9)
