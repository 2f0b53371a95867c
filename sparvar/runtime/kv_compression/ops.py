"""Attention of a layer that says which of its keys stay in the cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.errors import SessionError, message
from sparvar.runtime.generation import current
from sparvar.runtime.site_ops import choose_kept_keys, fake_attention, to_bnhd_layout


@torch.library.custom_op("sparvar::site_score", mutates_args=())
def site_score(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dense attention over what the cache holds, and the choice of the keys that stay in it.

    query [B, H, N, D], key and value [B, Hkv, T, D] to [B, H, N, D] laid out as [B, N, H, D].

    Raises:
        SessionError: the plan compresses no cache.
    """
    site = current()
    if site.generation.caches is None:
        raise SessionError(message(f"layer {site.layer} at scale {site.scale}", "have a cache to compress", "none"))
    choose_kept_keys(site, query, key, scale)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    site.generation.ran[site.scale, site.layer] = "score"
    return to_bnhd_layout(out)


site_score.register_fake(fake_attention)
