"""What stands for attention in exported programs: the ops of the kernels on explicit tensors, no session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparvar import kernels
from sparvar.runtime.columns import Columns
from sparvar.runtime.geometry import column_map, local_windows, query_tiles
from sparvar.runtime.site_ops import attend_columns, attention_with_stats, grow_delta, to_bnhd_layout
from sparvar.scale_plans import Plan

KINDS = ("dense", "decide", "cs4a", "csla")
"""Kinds of block program; the two sparse policies have one each, because what they are given differs."""


def kind_of(plan: Plan, scale: int, layer: int) -> str:
    """The kind of program that a layer runs at a scale, 0 being a call with the prefix alone."""
    if scale == 0:
        return "dense"
    kind = plan.kind(scale, layer)
    return plan.layers[layer] if kind == "sparse" else kind


def column_sets(plan: Plan) -> list[int]:
    """Numbers of columns that the decision scale selects, one set for each that a later scale asks for."""
    return sorted({plan.source_columns(scale) for scale in plan.cs4a})


@dataclass(frozen=True)
class SiteInterface:
    """What a kind of site takes beside q, k, v and what it gives beside its output, by name.

    Names with ``{layer}`` are one tensor per layer. Shapes are given with B batch rows and H heads.
    """

    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    def shapes(
        self, plan: Plan, rows: int, key_heads: int, heads: int, head_dim: int
    ) -> list[tuple[tuple[int, ...], torch.dtype | None]]:
        """Shape and dtype of everything taken; the dtype of attention's output where None."""
        found: list[tuple[tuple[int, ...], torch.dtype | None]] = []
        for name in self.takes:
            if name.startswith("constants/"):
                tensor = local_constants(plan)[name.removeprefix("constants/")]
                found.append((tuple(tensor.shape), tensor.dtype))
                continue
            assert plan.decision_scale is not None
            grid = plan.schedule[plan.decision_scale - 1]
            if name.startswith("delta"):
                found.append(((rows, heads, grid[0] * grid[1], head_dim), None))
                continue
            lead = (rows, key_heads, query_tiles(plan, plan.decision_scale).number)
            count = int("".join(each for each in name.split(".")[0] if each.isdigit()))
            found.append(((*lead, count) if name.startswith("columns") else lead, torch.int32))
        return found


def interface(plan: Plan, kind: str, scale: int) -> SiteInterface:
    """Names of the column lists and corrections that pass between programs."""
    delta = ("delta.{layer}",) if plan.output_correction else ()
    if kind == "decide":
        columns = [f"{part}{count}.{{layer}}" for count in column_sets(plan) for part in ("columns", "counts")]
        return SiteInterface(gives=(*columns, *delta))
    if kind == "cs4a":
        count = plan.source_columns(scale)
        return SiteInterface(takes=(f"columns{count}.{{layer}}", f"counts{count}.{{layer}}", *delta))
    if kind == "csla":
        return SiteInterface(takes=(f"constants/local{scale}.columns", f"constants/local{scale}.counts"))
    return SiteInterface()


SiteFunction = Callable[..., tuple[Tensor, ...]]
"""(q [B, H, N, D], k, v [B, H, T, D], *taken) to (out [B, H, N, D], *given)."""


Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Column sums [B, H, G, T] and a number of columns to lists [B, H, G, K] and their counts [B, H, G]."""


def native_site(plan: Plan, kind: str, scale: int, softmax_scale: float) -> SiteFunction:
    """The site of a kind in the ops of `sparvar.kernels`, as `sparvar.runtime.site_ops` runs it in process."""
    maker = {"decide": _decide, "cs4a": _cs4a, "csla": _csla}[kind]
    return named(maker(plan, scale, softmax_scale), f"sparvar_{kind}_{scale}")


def named(function: SiteFunction, name: str) -> SiteFunction:
    """The function under a name, by which a graph calls it."""
    function.__name__ = function.__qualname__ = name
    return function


def decided(
    plan: Plan, scale: int, out: Tensor, sums: Tensor, select: Select, attend: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """What a decision gives beside its output: lists of columns with their counts, and the output's correction.

    Args:
        plan, scale: of the decision.
        out: dense attention.
        sums: of its columns.
        select: the columns with the largest sums.
        attend: attention to columns alone, from lists and counts.
    """
    given = [tensor for count in column_sets(plan) for tensor in select(sums, count)]
    if plan.output_correction:
        kept = max(1, round(plan.cs4a[min(plan.cs4a)].budget * plan.keys(scale)))
        given.append(out - attend(*select(sums, kept)))
    return given


def _decide(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    def decide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        def attend(columns: Tensor, counts: Tensor) -> Tensor:
            listed = Columns(columns, counts)
            return attend_columns(query, key, value, listed, None, softmax_scale, query_tiles(plan, scale))

        out, sums, _ = attention_with_stats(plan, scale, query, key, value, softmax_scale)
        given = decided(plan, scale, out, sums, kernels.select_columns, attend)
        return (to_bnhd_layout(out), *given)

    return decide


def _cs4a(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    mapping, tiles = column_map(plan, scale), query_tiles(plan, scale)

    def cs4a(
        query: Tensor, key: Tensor, value: Tensor, indices: Tensor, counts: Tensor, *delta: Tensor
    ) -> tuple[Tensor]:
        columns = Columns(*kernels.map_columns(Columns(indices, counts), mapping))
        correction = grow_delta(delta[0], mapping.sources.grid, tiles.grid) if delta else None
        return (attend_columns(query, key, value, columns, correction, softmax_scale, tiles),)

    return cs4a


def _csla(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    def csla(query: Tensor, key: Tensor, value: Tensor, indices: Tensor, counts: Tensor) -> tuple[Tensor]:
        columns = Columns(indices, counts)
        return (attend_columns(query, key, value, columns, None, softmax_scale, query_tiles(plan, scale)),)

    return csla


def local_constants(plan: Plan, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Column lists of csla, which follow from the plan alone: stored with the artefact."""
    if "csla" not in plan.layers:
        return {}
    found = {}
    for scale in plan.csla:
        lists = kernels.local_columns(local_windows(plan, scale), device)
        found[f"local{scale}.columns"], found[f"local{scale}.counts"] = lists
    return found
