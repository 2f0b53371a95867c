"""Ops that stand for attention in rewritten graphs; they read layer, plan and state from the generation.

They are single ops, and not a chain of graph nodes, because what they keep (indices, corrections)
must not live in buffers that Inductor may reuse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar import kernels
from sparvar.errors import SessionError, message
from sparvar.kernels import QueryTiles
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import SiteContext, current
from sparvar.runtime.geometry import column_map, local_windows, query_tiles
from sparvar.scale_plans import Plan


def empty_bnhd(query: Tensor) -> Tensor:
    b, h, n, d = query.shape
    return query.new_empty((b, n, h, d)).transpose(1, 2)


def fake_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """What a site op promises: query [B, H, N, D] to as much, laid out as [B, N, H, D]."""
    return empty_bnhd(query)


def select(site: SiteContext, sums: Tensor) -> None:
    """Keep the top columns of ``sums`` [B, H, G, T] for every later scale that needs its own number."""
    plan = site.generation.plan
    for target in plan.cs4a:
        wanted = plan.source_columns(target)
        if (site.layer, wanted) not in site.generation.columns:
            site.generation.columns[site.layer, wanted] = Columns(*kernels.select_columns(sums, wanted))


def mapped_columns(site: SiteContext, batch: int) -> Columns:
    """Columns of a CS4A layer at the current scale.

    Raises:
        SessionError: the layer has not decided in this generation.
    """
    plan = site.generation.plan
    source = site.generation.columns.get((site.layer, plan.source_columns(site.scale)))
    if source is None or plan.decision_scale is None:
        raise SessionError(
            message(
                f"layer {site.layer} at scale {site.scale}",
                f"have column indices from decision scale {plan.decision_scale}",
                "none",
                "generate from the first scale",
            )
        )
    return Columns(*kernels.map_columns(source.rows(batch), column_map(plan, site.scale)))


def local_columns(plan: Plan, scale: int, device: torch.device, cache: dict[int, Columns]) -> Columns:
    """Columns of a CSLA layer at ``scale``; the same for all layers, so kept in ``cache``."""
    if scale not in cache:
        cache[scale] = Columns(*kernels.local_columns(local_windows(plan, scale), device))
    return cache[scale]


def layer_columns(site: SiteContext, query: Tensor) -> Columns:
    """Columns of a sparse layer at the current scale, in whole places: mapped (CS4A) or local (CSLA)."""
    plan = site.generation.plan
    if plan.layers[site.layer] == "csla":
        return local_columns(plan, site.scale, query.device, site.generation.local)
    return mapped_columns(site, query.shape[0])


def upsampled_delta(site: SiteContext, batch: int) -> Tensor | None:
    """Output correction (Chipmunk's delta) of a layer on the current grid, [B, H, N, D], or None where it has none."""
    plan = site.generation.plan
    delta = site.generation.delta.get(site.layer)
    if delta is None or plan.decision_scale is None:
        return None
    if delta.shape[0] == 2 * batch:
        delta = delta[:batch]
    return grow_delta(delta, plan.schedule[plan.decision_scale - 1], plan.schedule[site.scale - 1])


def grow_delta(delta: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """A correction [B, H, N_S, D] on grid ``source`` carried to grid ``target`` bilinearly, [B, H, N, D]."""
    b, h, _n, d = delta.shape
    # In memory [B, N, H, D], as attention writes it: a channels-last picture of H * D channels, read and written as
    # it lies.
    grid = delta.transpose(1, 2).reshape(b, *source, h * d).permute(0, 3, 1, 2)
    grown = F.interpolate(grid.float(), size=target, mode="bilinear", align_corners=False)
    return grown.permute(0, 2, 3, 1).reshape(b, -1, h, d).to(delta.dtype).transpose(1, 2)


def per_group(function: Callable[..., Sequence[Tensor]], query: Tensor, key: Tensor, *more: Tensor) -> list[Tensor]:
    """``function(query, key, *more)`` for queries of H heads and keys of fewer, each shared by H/Hkv query heads.

    Every call sees one query head per key head, as views: shared keys are not repeated in memory. ``more`` are tensors
    [B, H, ...] or [B, Hkv, ...]; results are [B, Hkv, ...] each and come back as [B, H, ...].
    """
    heads, shared = query.shape[1], key.shape[1]
    if heads == shared:
        return list(function(query, key, *more))
    size = heads // shared

    def member(tensor: Tensor, number: int) -> Tensor:
        return tensor if tensor.shape[1] == shared else tensor.unflatten(1, (shared, size))[:, :, number]

    parts = [function(member(query, g), key, *(member(tensor, g) for tensor in more)) for g in range(size)]
    return [torch.stack(same, dim=2).flatten(1, 2) for same in zip(*parts, strict=True)]


def attend_columns(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Columns,
    correction: Tensor | None,
    scale: float,
    tiles: QueryTiles,
) -> Tensor:
    """Attention of queries in ``tiles`` to ``columns`` alone, plus ``correction`` [B, H, N, D] where there is one."""

    def attend(query: Tensor, key: Tensor, *rest: Tensor) -> tuple[Tensor]:
        value, indices, counts, *delta = rest
        return (kernels.column_sparse_attention(query, key, value, Columns(indices, counts), scale, tiles, *delta),)

    addend = () if correction is None else (correction,)
    lists = lists_per_head(columns, query, key)
    return per_group(attend, query, key, value, *lists, *addend)[0]


def lists_per_head(columns: Columns, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and counts of ``columns``, repeated for every key head where `per_group` takes them apart by heads."""
    if query.shape[1] == key.shape[1] or columns.indices.shape[1] != 1:
        return columns.indices, columns.counts
    heads = key.shape[1]  # CSLA lists are the same for all heads
    return columns.indices.expand(-1, heads, -1, -1), columns.counts.expand(-1, heads, -1)


def to_bnhd_layout(out: Tensor) -> Tensor:
    """``out`` [B, H, N, D] laid out as [B, N, H, D], which the fakes promise."""
    return out if out.transpose(1, 2).is_contiguous() else out.transpose(1, 2).contiguous().transpose(1, 2)


def attention_with_stats(
    plan: Plan, number: int, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Dense attention at scale ``number`` with its column sums [B, H, G, T] and entropies [B, H, N] in nats."""
    tiles = query_tiles(plan, number)

    def group(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, lse, entropy = kernels.attention_stats(query, key, value, scale)
        return out, kernels.column_sums(query, key, lse, scale, tiles, plan.column_sum_stride), entropy

    out, sums, entropy = per_group(group, query, key, value)
    return out, sums, entropy


def choose_kept_keys(site: SiteContext, query: Tensor, key: Tensor, scale: float) -> None:
    """Choose the keys that stay in the layer's cache, where the generation compresses caches."""
    if site.generation.caches is not None:
        site.generation.caches.choose_keys(site.layer, site.scale, query, key, scale)


@torch.library.custom_op("sparvar::site_decide", mutates_args=())
def site_decide(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dense attention of the decision scale, and the columns that later scales will keep.

    query [B, H, N, D], key and value [B, H, T, D] to [B, H, N, D] laid out as [B, N, H, D].
    """
    site = current()
    plan = site.generation.plan
    out, sums, entropy = attention_with_stats(plan, site.scale, query, key, value, scale)
    if plan.measures_entropy(site.scale, site.layer) and site.generation.reducer is not None:
        site.generation.reducer.entropy[site.layer] = entropy.float().mean((0, 1))
    choose_kept_keys(site, query, key, scale)
    decides = plan.attention_kind(site.scale, site.layer) == "decide"
    started = time.perf_counter()
    if decides:
        select(site, sums)
    site.generation.seconds += time.perf_counter() - started
    if decides and plan.output_correction:
        # The share kept at the next sparse scale is what the correction makes up for.
        target = min(plan.cs4a)
        kept = max(1, round(plan.cs4a[target].budget * plan.keys(site.scale)))
        columns = kernels.select_columns(sums, kept)
        sparse = attend_columns(query, key, value, Columns(*columns), None, scale, query_tiles(plan, site.scale))
        site.generation.delta[site.layer] = out - sparse
    site.generation.ran[site.scale, site.layer] = "decide"
    return to_bnhd_layout(out)


@torch.library.custom_op("sparvar::site_sparse", mutates_args=())
def site_sparse(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Column-sparse attention with the layer's columns: mapped (CS4A) or local (CSLA).

    query [B, H, N, D], key and value [B, H, T, D] to [B, H, N, D] laid out as [B, N, H, D].
    """
    site = current()
    plan = site.generation.plan
    started = time.perf_counter()
    columns = layer_columns(site, query)
    if site.generation.caches is not None:
        columns = site.generation.caches.translate(columns, site.scale, site.layer, query.shape[0])
        choose_kept_keys(site, query, key, scale)
    site.generation.seconds += time.perf_counter() - started
    correction = upsampled_delta(site, query.shape[0])
    out = attend_columns(query, key, value, columns, correction, scale, query_tiles(plan, site.scale))
    site.generation.ran[site.scale, site.layer] = "sparse"
    return to_bnhd_layout(out)


@torch.library.custom_op("sparvar::site_observe", mutates_args=())
def site_observe(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dense attention that the generation's observer sees and returns, [B, H, N, D] laid out as [B, N, H, D].

    Raises:
        SessionError: the generation has no observer.
    """
    site = current()
    observer = site.generation.observer
    if observer is None:
        raise SessionError(message(f"layer {site.layer} at scale {site.scale}", "have an observer", "none"))
    out = observer.attention(site, query, key, value, scale)
    site.generation.ran[site.scale, site.layer] = "observe"
    return to_bnhd_layout(out)


for op in (site_decide, site_sparse, site_observe):
    op.register_fake(fake_attention)
