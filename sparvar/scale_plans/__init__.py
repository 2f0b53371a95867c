"""Plans: what runs at every scale and layer, as pure data."""

from sparvar.scale_plans.adapt import FEATURES, Adapt, Logistic, decide
from sparvar.scale_plans.data import (
    INDEX_MAPS,
    POLICIES,
    SCHEMA_VERSION,
    CS4AScale,
    CSLAScale,
    Kind,
    ModelInfo,
    Provenance,
    Thresholds,
    model_fingerprint,
)
from sparvar.scale_plans.kv_cache import KVCompression
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.presets.build import default_for, default_plan, dense_plan
from sparvar.scale_plans.presets.kv_compression import hack, held_share, local, peak_share, scalekv
from sparvar.scale_plans.presets.methods import conditional, fastvar, kept_tokens, sparsevar, toprovar
from sparvar.scale_plans.presets.published import Published, find_published, published_models
from sparvar.scale_plans.presets.schedules import infinity_schedules, parse_schedule
from sparvar.scale_plans.reductions import FILLS, SCORES, Guidance, PrunedSpan, Pruning, Skip
from sparvar.scale_plans.schema import json_schema
from sparvar.scale_plans.sets import PlanSet, Schedule, schedule_text
from sparvar.scale_plans.shipped.catalogue import find_plan, load_plan, shipped_plans
from sparvar.scale_plans.show.compare import PlanDiff, diff
from sparvar.scale_plans.static_plans import graph_bound
from sparvar.scale_plans.thresholds import keep_count, layer_score, start_scale
from sparvar.scale_plans.transfer.plan import transfer, transferable
from sparvar.scale_plans.work import ScaleWork, scale_work, total_work

__all__ = [
    "FEATURES",
    "FILLS",
    "INDEX_MAPS",
    "POLICIES",
    "SCHEMA_VERSION",
    "SCORES",
    "Adapt",
    "CS4AScale",
    "CSLAScale",
    "Guidance",
    "KVCompression",
    "Kind",
    "Logistic",
    "ModelInfo",
    "Plan",
    "PlanDiff",
    "PlanSet",
    "Provenance",
    "PrunedSpan",
    "Pruning",
    "Published",
    "ScaleWork",
    "Schedule",
    "Skip",
    "Thresholds",
    "conditional",
    "decide",
    "default_for",
    "default_plan",
    "dense_plan",
    "diff",
    "fastvar",
    "find_plan",
    "find_published",
    "graph_bound",
    "hack",
    "held_share",
    "infinity_schedules",
    "json_schema",
    "keep_count",
    "kept_tokens",
    "layer_score",
    "load_plan",
    "local",
    "model_fingerprint",
    "parse_schedule",
    "peak_share",
    "published_models",
    "scale_work",
    "scalekv",
    "schedule_text",
    "shipped_plans",
    "sparsevar",
    "start_scale",
    "toprovar",
    "total_work",
    "transfer",
    "transferable",
]
