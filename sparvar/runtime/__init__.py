"""The state of generations, the ops that read it, and hooks that watch it."""

from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import Generation, SiteContext, active, current, enter, leave
from sparvar.runtime.hooks import Hook
from sparvar.runtime.kv_compression.ops import site_score
from sparvar.runtime.reductions.ops import site_pruned, site_spread
from sparvar.runtime.site_ops import local_columns, site_decide, site_observe, site_sparse

__all__ = [
    "Columns",
    "Generation",
    "Hook",
    "SiteContext",
    "active",
    "current",
    "enter",
    "leave",
    "local_columns",
    "site_decide",
    "site_observe",
    "site_pruned",
    "site_score",
    "site_sparse",
    "site_spread",
]
