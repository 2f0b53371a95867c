"""Rewrites of captured graphs, one rule per file."""

from sparvar.passes.rewrite.kv_cache import KvCacheRule, compute_dtype
from sparvar.passes.rewrite.row_mlp import RowMlpRule
from sparvar.passes.rewrite.sites import SiteRule

__all__ = ["KvCacheRule", "RowMlpRule", "SiteRule", "compute_dtype"]
