"""The Triton kernels on a real GPU, eager and compiled by Inductor, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparvar import kernels
from sparvar.kernels.attention_stats import reference as dense
from sparvar.kernels.column_sparse_attention import reference as sparse
from sparvar.kernels.column_sums import reference as sums
from tests.kernels.support import (
    DTYPES,
    HEAD_DIMS,
    assert_within,
    qkv,
    random_columns,
    tiles_of,
    triton_bound,
    weight_error,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GEOMETRY = tiles_of(20, 36, 8, 16)  # 3 x 3 tiles, ragged both ways
QUERIES, TILES, KEYS = 720, 9, 1500


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_GPU_KERNELS", "triton")


def every(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    scale = q.shape[-1] ** -0.5
    out, lse, entropy = kernels.attention_stats(q, k, v, scale)
    columns = kernels.column_sums(q, k, lse, scale, GEOMETRY, 2)
    kept = kernels.Columns(indices, counts)
    return out, lse, entropy, columns, kernels.column_sparse_attention(q, k, v, kept, scale, GEOMETRY, out)


def check(run: Callable[..., tuple[Tensor, ...]], dim: int, dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 2, QUERIES, KEYS, dim, dtype)
    lists = random_columns(1, 2, TILES, KEYS, 300)
    found = [x.cpu() for x in run(*(x.cuda() for x in (q, k, v, *lists)))]
    out, lse, entropy, columns, kept = found
    scale = dim**-0.5
    wide = q.double(), k.double(), v.double()
    exact, exact_lse, exact_entropy = dense.run(*wide, scale)
    mixed = dense.run(*wide[:2], wide[2].abs(), scale)[0]
    relative = weight_error(q, k, scale) + 1e-5
    assert_within(out, exact, triton_bound(q, k, v, scale, exact, mixed, KEYS))
    assert_within(lse, exact_lse, relative * (1 + exact_lse.abs()))
    assert_within(entropy, exact_entropy, 20 * relative)  # scores spread over less than 10 nats
    exact_columns = sums.run(*wide[:2], exact_lse, scale, GEOMETRY, 2)
    assert_within(columns, exact_columns, 2 * relative * exact_columns + 1e-30)
    exact_kept = sparse.run(*wide, lists, scale, GEOMETRY)
    mixed = sparse.run(*wide[:2], wide[2].abs(), lists, scale, GEOMETRY)
    bound = triton_bound(q, k, v, scale, exact_kept, mixed, 300) + 2.0**-7 * (exact_kept.abs() + out.double().abs())
    assert_within(kept, exact_kept + out.double(), bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_every_kernel(dim: int, dtype: torch.dtype) -> None:
    check(every, dim, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_by_inductor(dtype: torch.dtype) -> None:
    compiled = torch.compile(every, fullgraph=True, dynamic=False)
    with torch.no_grad():
        check(compiled, 104, dtype)


def test_searched_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_GPU_TUNE", "search")
    check(every, 128, torch.bfloat16)
