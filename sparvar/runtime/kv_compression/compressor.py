"""What is left of a generation's KV cache: compact tensors that the model's own ``cat`` goes on with.

Behind a layer's call the keys and values that the plan keeps are copied into tensors of just their size, and these
take the place of the cache on the module. Everything that names keys by their place in whole grids, lists of sparse
layers above all, is translated by the places that are kept here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import SessionError, message
from sparvar.runtime.columns import Columns
from sparvar.runtime.kv_compression.key_scores import (
    attention_scores,
    chosen_keys,
    observation_queries,
    rank_scores,
    top,
)
from sparvar.runtime.reductions.argument_axes import cache_places, tensors_of
from sparvar.scale_plans import Plan

Holder = tuple[dict[Any, Any], Any, Tensor, int]
"""Where a cache is: holder, key, tensor, and the axis that counts keys."""


@dataclass
class Compressor:
    """The KV compression of one generation.

    Attributes:
        plan: how many keys stay where.
        places: per layer, whole places of the keys in its cache, ascending, int64 [B, Hkv, T]; [1, 1, T] where all
            heads and rows have the same. Absent while the cache is whole.
        chosen: per layer, places in the cache of the keys that stay, int64 [B, Hkv, K], between scoring and dropping.
    """

    plan: Plan
    places: dict[int, Tensor] = field(default_factory=dict)
    chosen: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.plan
        sites = itertools.product(range(1, plan.drawn + 1), range(len(plan.layers)))
        self._lengths = {site: (plan.present(*site), plan.room(*site)) for site in sites}

    def lengths(self, scale: int, layer: int) -> tuple[int, int]:
        """Keys that a layer attends to at a scale, and those that its cache needs room for."""
        return self._lengths[scale, layer]

    def present(self, scale: int, layer: int, rows: int, device: torch.device) -> Tensor:
        """Whole places of the keys that a layer attends to at a scale, int64 [B or 1, Hkv or 1, T]."""
        held = self.places.get(layer)
        first = 0 if held is None else self.plan.offset(scale)
        own = torch.arange(first, self.plan.keys(scale), device=device)
        if held is None:
            return own[None, None]
        if held.shape[0] not in (1, rows):  # the model, or the plan, went on with the conditional rows alone
            held = held[:rows]
        return torch.cat((held, own.expand(*held.shape[:2], -1)), dim=-1)

    def choose_keys(self, layer: int, scale: int, query: Tensor, key: Tensor, factor: float) -> None:
        """Choose the keys that stay once this scale has run, where the plan drops some by attention.

        Args:
            query: [B, H, N, D] of the whole scale.
            key: [B, Hkv, T, D] of the cache with this scale's.
            factor: softmax scale.
        """
        plan = self.plan
        if plan.kv is None or not plan.scores_keys(scale, layer):
            return
        observed = query[:, :, observation_queries(plan.grid(scale), plan.kv.queries, query.device)]
        scores = attention_scores(observed, key, factor)
        places = self.present(scale, layer, key.shape[0], key.device).expand(scores.shape)
        kinds = plan.kv.kinds[layer]
        if len(kinds) not in (1, key.shape[1]):
            must = f"name one kind or one for each of the {key.shape[1]} key heads"
            raise SessionError(message(f"kv.kinds, layer {layer}", must, f"{len(kinds)} kinds"))
        self.chosen[layer] = chosen_keys(plan, scale, kinds, scores, places, plan.held(scale, layer))

    def compact_caches(
        self, module: nn.Module, layer: int, scale: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Drop what the plan drops behind a layer's call with ``args``: the caches on ``module`` become compact.

        Raises:
            SessionError: the module does not hold one cache of keys and one of values with this many keys.
        """
        if scale == 0:
            return
        if not self.plan.drops_keys(scale, layer) and layer in self.places:
            held = self.places[layer]
            self.places[layer] = self.present(scale, layer, held.shape[0], held.device)
        if not self.plan.compacts(scale, layer):
            return
        rows = next(tensor.shape[0] for _, tensor in tensors_of(args, kwargs) if tensor.ndim == 3)
        caches = list(self._caches(module, layer, scale, rows))
        if scale >= self.plan.drawn:
            for holder, name, cache, axis in caches:
                holder[name] = cache.new_empty([0 if each == axis else size for each, size in enumerate(cache.shape)])
            self.places.pop(layer, None)
            return
        if not self.plan.drops_keys(scale, layer):
            for holder, name, cache, _ in caches:
                holder[name] = cache.to(torch.bfloat16)
            return
        cache = caches[0][2]
        present = self.present(scale, layer, rows, cache.device)
        kept = self._kept(layer, scale, present)
        for holder, name, cache, axis in caches:
            holder[name] = self._compact(cache, axis, kept)
        self.places[layer] = present.expand(*kept.shape[:2], -1).gather(2, kept)

    def _kept(self, layer: int, scale: int, present: Tensor) -> Tensor:
        plan = self.plan
        assert plan.kv is not None
        if plan.kv.method == "local":
            scores = rank_scores(plan, scale, present).masked_fill(present < plan.sinks, float("inf"))
            return top(scores, plan.held(scale, layer))
        if layer not in self.chosen:
            must = "have scored its keys before some are dropped"
            raise SessionError(message(f"layer {layer} at {plan.label(scale)}", must, "no scores"))
        return self.chosen.pop(layer)

    def _caches(self, module: nn.Module, layer: int, scale: int, rows: int) -> Iterator[Holder]:
        keys = self.plan.present(scale, layer)
        found = list(cache_places(module, rows, keys))
        if len(found) != 2:
            raise SessionError(
                message(
                    f"layer {layer} at {self.plan.label(scale)}",
                    f"keep its keys and its values in two tensors [{rows}, ., .] of {keys} keys on its module",
                    f"{len(found)} such tensors",
                    "take kv out of the plan",
                )
            )
        for holder, name, cache in found:
            both = cache.shape[1] == cache.shape[2]
            yield holder, name, cache, 1 if cache.shape[1] == keys and not both else 2

    def _compact(self, cache: Tensor, axis: int, kept: Tensor) -> Tensor:
        """A copy [.., K, ..] of the keys ``kept`` [B or 1, Hkv or 1, K] of a cache."""
        assert self.plan.kv is not None
        heads = 3 - axis
        index = kept.expand(cache.shape[0], cache.shape[heads], -1)
        index = (index if axis == 2 else index.transpose(1, 2)).unsqueeze(-1).expand(-1, -1, -1, cache.shape[3])
        compact = cache.gather(axis, index)
        return compact.to(torch.bfloat16) if self.plan.kv.store == "bfloat16" else compact

    def translate(self, columns: Columns, scale: int, layer: int, rows: int) -> Columns:
        """Lists in whole places as lists in the cache, without the keys that are not there: map, then intersect."""
        if layer not in self.places:
            return columns
        present = self.present(scale, layer, rows, columns.indices.device)
        b, h, keys = present.shape
        table = present.new_full((b, h, self.plan.keys(scale)), -1)
        table.scatter_(2, present, torch.arange(keys, device=present.device).expand(b, h, -1))
        b, h = max(b, columns.indices.shape[0]), max(h, columns.indices.shape[1])
        indices = columns.indices.expand(b, h, -1, -1)
        length = indices.shape[3]
        used = torch.arange(length, device=indices.device) < columns.counts.expand(b, h, -1)[..., None]
        whole = torch.where(used, indices, 0).long()
        there = table.expand(b, h, -1).gather(2, whole.flatten(2)).view(whole.shape)
        lives = used & (there >= 0)
        slot = torch.where(lives, lives.cumsum(-1) - 1, length)
        kept = indices.new_zeros((*indices.shape[:3], length + 1)).scatter_(-1, slot, there.to(indices.dtype))
        return Columns(kept[..., :-1].contiguous(), lives.sum(-1, dtype=torch.int32))

    def release(self) -> None:
        """Drop everything that the generation held."""
        self.places.clear()
        self.chosen.clear()


def compressor_of(plan: Plan) -> Compressor | None:
    """The compressor of a plan, or None where its caches stay whole."""
    return Compressor(plan) if plan.kv is not None else None
