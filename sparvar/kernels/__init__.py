"""Ops of sparse attention for scale-wise autoregressive models, as `torch.ops.sparvar.*`.

Shapes: B batch rows, H heads, N queries, T keys, D head dim, G query tiles, K kept columns.
"""

from sparvar.kernels.attention_stats.op import attention_stats
from sparvar.kernels.column_sparse_attention.op import column_sparse_attention
from sparvar.kernels.column_sparse_rows.op import column_sparse_rows
from sparvar.kernels.column_sums.op import column_sums
from sparvar.kernels.common.columns import Columns, KeptTokens
from sparvar.kernels.common.geometry import QueryTiles, Schedule
from sparvar.kernels.common.gpu import GpuStatus, gpu_status
from sparvar.kernels.common.native import (
    NativeStatus,
    adopt_library,
    implementation,
    native_library,
    native_status,
    sources_digest,
)
from sparvar.kernels.kv_cache.memory import empty as kv_empty
from sparvar.kernels.kv_cache.memory import held_bytes as kv_held_bytes
from sparvar.kernels.kv_cache.memory import release_idle as kv_release
from sparvar.kernels.kv_cache.memory import trim_memory
from sparvar.kernels.kv_cache.op import kv_acquire, kv_extend
from sparvar.kernels.local_columns.op import local_columns
from sparvar.kernels.local_columns.windows import LocalWindows, local_capacity
from sparvar.kernels.map_columns.op import map_columns
from sparvar.kernels.map_columns.spans import ColumnMap, map_capacity
from sparvar.kernels.row_mlp.op import chunk_rows as row_mlp_rows
from sparvar.kernels.row_mlp.op import row_mlp
from sparvar.kernels.select_columns.op import select_columns
from sparvar.kernels.static.arithmetic import SiteWork, Work
from sparvar.kernels.static.cases import StaticCase, static_cases
from sparvar.kernels.static.compiled import StaticFacts, static_compile, static_problems, static_toolchain
from sparvar.kernels.static.roofline import GpuFit, find_gpu, gpu_fit, roofline_seconds
from sparvar.kernels.static.targets import GPUS as STATIC_GPUS
from sparvar.kernels.static.targets import Gpu

__all__ = [
    "STATIC_GPUS",
    "ColumnMap",
    "Columns",
    "Gpu",
    "GpuFit",
    "GpuStatus",
    "KeptTokens",
    "LocalWindows",
    "NativeStatus",
    "QueryTiles",
    "Schedule",
    "SiteWork",
    "StaticCase",
    "StaticFacts",
    "Work",
    "adopt_library",
    "attention_stats",
    "column_sparse_attention",
    "column_sparse_rows",
    "column_sums",
    "find_gpu",
    "gpu_fit",
    "gpu_status",
    "implementation",
    "kv_acquire",
    "kv_empty",
    "kv_extend",
    "kv_held_bytes",
    "kv_release",
    "local_capacity",
    "local_columns",
    "map_capacity",
    "map_columns",
    "native_library",
    "native_status",
    "roofline_seconds",
    "row_mlp",
    "row_mlp_rows",
    "select_columns",
    "sources_digest",
    "static_cases",
    "static_compile",
    "static_problems",
    "static_toolchain",
    "trim_memory",
]
