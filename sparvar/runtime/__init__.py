"""Session state and the ops that read it."""

from sparvar.runtime.columns import Columns
from sparvar.runtime.context import SiteContext, active, current, enter, leave
from sparvar.runtime.generation import Session
from sparvar.runtime.hooks import Hook
from sparvar.runtime.kv_compression.ops import site_score
from sparvar.runtime.reductions.ops import site_pruned, site_spread
from sparvar.runtime.site_ops import local_columns, site_decide, site_observe, site_sparse

__all__ = [
    "Columns",
    "Hook",
    "Session",
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
