"""Column lists and whole generations on a CUDA device; `tests/kernels/test_gpu.py` has the attention kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparvar
from sparvar import kernels
from sparvar.kernels.select_columns import reference as select_reference
from sparvar.scale_plans import ModelInfo, default_plan
from sparvar.zoo import landscape, shaped
from tests.kernels.support import random_columns

pytestmark = pytest.mark.gpu
SMALL, LARGE = "small", "large"


def on_gpu(*tensors: Tensor) -> list[Tensor]:
    torch.cuda.empty_cache()
    torch.full((1 << 24,), float("nan"), device="cuda")  # what freed memory holds
    return [tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_select_columns(size: str) -> None:
    total, kept = (300, 37) if size == SMALL else (10521, 2104)
    sums = torch.rand(2, 3, 4, total).round(decimals=3)  # with ties
    actual = kernels.select_columns(*on_gpu(sums), kept)
    for got, expected in zip(actual, select_reference.run(sums, kept), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("index_map", ["identity", "relative", "footprint"])
def test_map_columns_small(index_map: str) -> None:
    schedule = kernels.Schedule((1, 2, 4, 6, 8, 12), (1, 3, 5, 8, 12, 16), 3)
    source = schedule.offsets()[5] - 3
    lists = random_columns(2, 2, 2, source, 60)
    mapping = kernels.ColumnMap(schedule, 5, 6, (8, 8), index_map, 2, 3)
    shifted = kernels.Columns((lists[0] + 3).clamp(max=source + 2), lists[1])
    actual = kernels.map_columns(kernels.Columns(*on_gpu(*shifted)), mapping)
    expected = kernels.map_columns(shifted, mapping)
    for got, wanted in zip(actual, expected, strict=True):
        assert torch.equal(got.cpu(), wanted)


def test_the_shipped_model_draws_what_it_draws_on_the_cpu() -> None:
    """Same seed, dense on both: noise is drawn on the CPU, so images differ by rounding and the bits that it flips."""
    model = landscape()
    expected = model.generate(["mountain"], seed=0)
    model.cuda()
    dense = model.generate(["mountain"], seed=0).cpu()
    sparse = torch.compile(model, backend="sparvar").generate(["mountain"], seed=0).cpu()  # type: ignore[operator]
    assert (dense - expected).square().mean() < 1e-3
    assert (sparse - dense).square().mean() < 1e-2


def test_no_host_synchronisation_in_a_sparse_scale() -> None:
    """After the first generation nothing waits for the device before the end."""
    schedule = ((1, 1), (2, 2), (4, 4), (8, 8), (12, 12), (16, 16))
    model = shaped("tiny", schedule).cuda().bfloat16()
    names = [f"blocks.{i}.sa" for i in range(model.shape.depth)]
    sparvar.compile(model, default_plan(schedule, ModelInfo(sites=names, heads=2, head_dim=64)))
    model.generate(seed=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.generate(seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
