"""The Triton kernel of `select_columns` against the reference: the same lists, to the last tie."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparvar.kernels.select_columns import gpu, portable, reference
from tests.kernels.triton.columns_support import DEVICE, POISON, run_poisoned

VALUES = (0.0, -0.0, 1e-40, -1e-40, 0.25, 0.5, 1.0, 3.0, math.inf, -math.inf, math.nan, -math.nan, -2.0)
BITS = (0x7F800001, 0x7FC00000, 0xFFC00000, 0xFF800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x00000001, 0x80000001)


def check(sums: torch.Tensor, kept: int) -> None:
    indices, counts = run_poisoned(gpu.run, sums, kept)
    exact, exact_counts = reference.run(sums, kept)
    assert torch.equal(indices, exact) and torch.equal(counts, exact_counts)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_ties_and_special_values(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=300))
    kept = data.draw(st.integers(1, len(values)))
    first = torch.tensor(values, dtype=torch.float32)
    check(torch.stack((first, first.flip(0)))[None, None], kept)


@settings(max_examples=30)
@given(st.lists(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from(BITS)), min_size=1, max_size=40), st.data())
def test_any_bits(bits: list[int], data: st.DataObject) -> None:
    signed = torch.tensor([b - 2**32 if b >= 2**31 else b for b in bits], dtype=torch.int32)
    check(signed.view(torch.float32)[None, None, None], data.draw(st.integers(1, len(bits))))


@pytest.mark.parametrize("columns", [1, 2, 127, 128, 129, 1000, 2521])
def test_lengths_around_the_blocks(columns: int) -> None:
    sums = torch.rand(1, 2, 1, columns)
    for kept in {1, max(columns // 5, 1), max(columns - 1, 1), columns}:
        check(sums, kept)


@pytest.mark.parametrize("value", [0.0, 1.0, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("kept", [1, 100, 300])
def test_a_row_of_one_value_keeps_its_first_keys(value: float, kept: int) -> None:
    indices, counts = run_poisoned(gpu.run, torch.full((1, 1, 2, 300), value), kept)
    assert torch.equal(indices, torch.arange(kept, dtype=torch.int32).expand(1, 1, 2, kept))
    assert torch.equal(counts, torch.full((1, 1, 2), kept, dtype=torch.int32))


@pytest.mark.parametrize("columns", [gpu.RESIDENT_COLUMNS, gpu.RESIDENT_COLUMNS + 1, 10521, 40001])
def test_long_rows(columns: int) -> None:
    sums = torch.rand(1, 1, 2, columns)
    sums[0, 0, 1, ::3] = 0.75  # ties over every block
    sums[0, 0, 1, 5000] = math.nan
    for kept in (1, columns // 5, columns):
        check(sums, kept)


def test_strided_rows() -> None:
    sums = torch.rand(3, 2, 50, 4)
    check(sums.transpose(2, 3), 7)


def test_no_rows() -> None:
    indices, counts = gpu.run(torch.zeros(2, 0, 3, 5, device=DEVICE), 4)
    assert indices.shape == (2, 0, 3, 4) and counts.shape == (2, 0, 3)


def test_portable_agrees_on_every_value() -> None:
    sums = torch.tensor(VALUES)[None, None, None]
    for kept in range(1, len(VALUES) + 1):
        assert torch.equal(portable.run(sums, kept)[0], reference.run(sums, kept)[0])


@pytest.mark.parametrize(("rows", "distinct"), [(3, True), (1, False)])
def test_only_the_rows_are_written(rows: int, distinct: bool) -> None:
    columns, kept = 333, 41
    guarded = torch.full((rows * kept + 400,), POISON, dtype=torch.int32, device=DEVICE)
    counts = torch.full((rows + 400,), POISON, dtype=torch.int32, device=DEVICE)
    sums = torch.rand(rows, columns, device=DEVICE) if distinct else torch.ones(rows, columns, device=DEVICE)
    constants = {"RESIDENT": True, "BLOCK": 512, "CHUNK": 128}
    gpu.select_kernel[(rows,)](sums, guarded[200:], counts[200:], columns, kept, **constants, num_warps=1)
    inner = slice(200, 200 + rows * kept)
    exact, _ = reference.run(sums.cpu()[None, None], kept)
    assert torch.equal(guarded[inner].cpu().view(1, 1, rows, kept), exact)
    assert counts[200 : 200 + rows].tolist() == [kept] * rows
    for buffer, end in ((guarded, 200 + rows * kept), (counts, 200 + rows)):
        assert torch.all(buffer[:200] == POISON) and torch.all(buffer[end:] == POISON)
