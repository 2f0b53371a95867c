"""Ops of layers that lack tokens: attention of the queries that exist to the keys that exist.

Places of keys stay those of the whole grids, so that windows and index maps mean what they mean elsewhere; what never
entered the cache is a hole in it, left out of every list (map first, then intersect).
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar import kernels
from sparvar.errors import SessionError, message
from sparvar.kernels.column_sparse_rows.portable import filtered
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import SiteContext, current
from sparvar.runtime.geometry import query_tiles
from sparvar.runtime.reductions.reducer import Kept, Reducer
from sparvar.runtime.site_ops import (
    attend_columns,
    fake_attention,
    layer_columns,
    lists_per_head,
    per_group,
    to_bnhd_layout,
    upsampled_delta,
)


def _reducer(site: SiteContext) -> Reducer:
    reducer = site.generation.reducer
    if reducer is None:
        raise SessionError(message(f"layer {site.layer} at scale {site.scale}", "leave tokens out", "a plan without"))
    return reducer


@torch.library.custom_op("sparvar::site_spread", mutates_args=())
def site_spread(new: Tensor, tokens: int, dim: int) -> Tensor:
    """Keys or values of the kept tokens in their places among ``tokens`` along ``dim``; zeros elsewhere."""
    kept = _reducer(current()).kept
    if kept is None:
        raise SessionError(message("kept tokens", "be chosen before a block runs on them", "none"))
    shape = list(new.shape)
    shape[dim] = tokens
    whole = new.new_zeros(shape)
    whole.index_copy_(dim, kept.tokens, new)
    return whole


@site_spread.register_fake
def _(new: Tensor, tokens: int, dim: int) -> Tensor:
    shape = list(new.shape)
    shape[dim] = tokens
    return new.new_empty(shape)


def _sparse(
    site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float, kept: Kept | None, alive: Tensor
) -> Tensor:
    plan = site.generation.plan
    started = time.perf_counter()
    columns, correction = layer_columns(site, query), upsampled_delta(site, query.shape[0])
    site.generation.seconds += time.perf_counter() - started
    if kept is None:
        lists = Columns(*filtered(columns, alive))
        return attend_columns(query, key, value, lists, correction, scale, query_tiles(plan, site.scale))
    if correction is not None:
        correction = correction[:, :, kept.tokens]

    def attend(query: Tensor, key: Tensor, *rest: Tensor) -> tuple[Tensor]:
        value, indices, counts, *extra = rest
        lists, tokens = Columns(indices, counts), kernels.KeptTokens(kept.starts, alive)
        return (kernels.column_sparse_rows(query, key, value, lists, scale, tokens, *extra),)

    more = () if correction is None else (correction,)
    return per_group(attend, query, key, value, *lists_per_head(columns, query, key), *more)[0]


@torch.library.custom_op("sparvar::site_pruned", mutates_args=())
def site_pruned(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of a layer that lacks tokens, by its policy at the scale.

    query [B, H, n, D] of the kept tokens in tile order (all N in the order of the grid where this scale has them all),
    key and value [B, H, T, D] in whole places to [B, H, n, D] laid out as [B, n, H, D].
    """
    site = current()
    reducer = _reducer(site)
    number, keys = reducer.span_number(site.layer), key.shape[2]
    alive = reducer.alive.get(number)
    if alive is None:
        raise SessionError(message(f"layer {site.layer} at scale {site.scale}", "have chosen its tokens", "none"))
    if site.generation.plan.attention_kind(site.scale, site.layer) == "sparse":
        out = _sparse(site, query, key, value, scale, reducer.kept, alive[:keys])
    else:
        places = reducer.places(number, site.scale)
        have = key.index_select(2, places), value.index_select(2, places)
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, *have, scale=scale, enable_gqa=grouped)
    site.generation.ran[site.scale, site.layer] = "pruned"
    return to_bnhd_layout(out)


site_pruned.register_fake(fake_attention)
