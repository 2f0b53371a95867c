"""What the key of Inductor's on-disk cache must know of sparvar beside a graph."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import fx

from sparvar.compiler.torch_compat import graph_pass_class, user_post_passes
from sparvar.passes import PASSES, uuid
from sparvar.version import __version__

CONTRACTS = (
    "sparvar.kernels.attention_stats.op",
    "sparvar.kernels.column_sparse_attention.op",
    "sparvar.kernels.column_sparse_rows.op",
    "sparvar.kernels.column_sums.op",
    "sparvar.kernels.common.checks",
    "sparvar.kernels.common.columns",
    "sparvar.kernels.common.geometry",
    "sparvar.kernels.common.library",
    "sparvar.kernels.kv_cache.buffers",
    "sparvar.kernels.kv_cache.op",
    "sparvar.kernels.local_columns.op",
    "sparvar.kernels.map_columns.op",
    "sparvar.kernels.map_columns.spans",
    "sparvar.kernels.row_mlp.op",
    "sparvar.kernels.select_columns.op",
    "sparvar.runtime.kv_compression.ops",
    "sparvar.runtime.reductions.ops",
    "sparvar.runtime.site_ops",
)
"""Modules that define ops, and those from which their fakes take shapes and strides."""


@functools.cache
def contracts_digest() -> str:
    """Hash of the sources that say what ops take and return."""
    digest = hashlib.sha256()
    for name in CONTRACTS:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


def post_pass() -> Any:
    """The user's own ``post_grad_custom_post_pass`` with our version in its ``uuid()``, for one compilation.

    Inductor's key holds the names of custom ops and not what their fakes return: without our version, a graph cached by
    another one would be found, and would assert other shapes or strides. It holds the ``uuid()`` of this pass. As with
    the user's pass alone, a pass without one is never served from the cache.
    """
    passes = user_post_passes()
    uuids = tuple(_uuid(each) for each in passes)
    key = None if None in uuids else (f"sparvar-{__version__}-{uuid(PASSES)}-{contracts_digest()}", *uuids)
    aware = [_is_aware(each) for each in passes]
    base: Any = graph_pass_class(aware=any(aware))

    class WithKey(base):
        def __call__(self, graph: fx.Graph, *args: Any, **kwargs: Any) -> None:
            for each, told in zip(passes, aware, strict=True):
                each(graph, *args, **kwargs) if told else each(graph)

        def uuid(self) -> object:
            return key

    return WithKey()


def _uuid(run: Callable[..., None]) -> object:
    return run.uuid() if isinstance(run, graph_pass_class()) else None  # type: ignore[attr-defined]


def _is_aware(run: Callable[..., None]) -> bool:
    return isinstance(run, graph_pass_class()) and isinstance(run, graph_pass_class(aware=True))
