"""Rooflines of named GPUs: their arithmetic is that of the static table and of docs/notebook."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparvar import kernels
from sparvar.errors import KernelError, OptionError
from sparvar.kernels.static import arithmetic, roofline
from sparvar.kernels.static.compiled import StaticFacts
from sparvar.kernels.static.targets import TARGETS

pytest.importorskip("triton")

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "static-kernels.json"
BF16 = torch.bfloat16
TILE, LAST, KEYS = (8, 16), (64, 64), 10521
SITE = kernels.SiteWork(2, 16, 128, BF16)  # Infinity-2B at the last scale of the 1M schedule, with CFG


def seconds(name: str, work: kernels.Work, dtype: torch.dtype = BF16) -> float:
    return kernels.roofline_seconds(kernels.find_gpu(name), dtype, work)


@pytest.mark.parametrize("kernel", ["column_sparse_attention", "attention_stats", "column_sums"])
def test_steps_are_those_of_the_static_table(kernel: str) -> None:
    rows = [row for row in json.loads(TABLE.read_text())["cases"] if row["kernel"] == kernel]
    assert len(rows) > 100
    for row in rows:
        found = arithmetic.step_arithmetic(
            kernel, row["block"], row["head_dim"], arithmetic.ELEMENTS[row["dtype"]].itemsize
        )
        assert found == (row["flops"], row["bytes"]), row
        if row["variant"] == "pinned":
            hip = TARGETS[row["target"]].backend == "hip"
            site = kernels.SiteWork(1, 1, row["head_dim"], arithmetic.ELEMENTS[row["dtype"]], hip)
            # Four warps instead of eight are Hopper's own choice, and nothing that is counted.
            same = ("m", "n") if (kernel, row["target"]) == ("column_sums", "sm_90") else tuple(row["block"])
            block = site.block(kernel, 128)
            assert {name: block[name] for name in same} == {name: row["block"][name] for name in same}, row


def test_attention_is_the_sum_of_its_steps() -> None:
    """Against the table's own numbers: 32 blocks of 128 queries, 165 steps of 64 keys, 32 heads and rows."""
    (row,) = (
        row
        for row in json.loads(TABLE.read_text())["cases"]
        if (row["kernel"], row["target"], row["dtype"], row["head_dim"], row["variant"])
        == ("attention_stats", "sm_90", "bf16", 128, "pinned")
    )
    work = SITE.attention_stats(4096, KEYS)
    steps = 32 * 32 * math.ceil(KEYS / 64)
    ends = 2 * 32 * 4096 * 128 * 2 + 2 * 32 * 4096 * 4  # queries, output; log-sum-exp, entropy
    assert (work.flops, work.bytes) == (steps * row["flops"], steps * row["bytes"] + ends)
    assert SITE.dense(4096, KEYS).flops == 4 * 32 * 4096 * KEYS * 128
    assert SITE.dense(4096, KEYS).bytes == 32 * 32 * 2 * KEYS * 128 * 2 + 2 * 32 * 4096 * 128 * 2


def test_head_dimensions_are_padded_by_the_kernels_alone() -> None:
    narrow, padded = (kernels.SiteWork(1, 1, dim, BF16) for dim in (104, 128))
    assert narrow.attention_stats(256, 512).flops == padded.attention_stats(256, 512).flops
    assert narrow.attention_stats(256, 512).bytes < padded.attention_stats(256, 512).bytes
    assert narrow.dense(256, 512).flops == 104 / 128 * padded.dense(256, 512).flops


@pytest.mark.parametrize("gpu", [gpu.name for gpu in kernels.STATIC_GPUS])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_sparse_grows_with_columns_and_never_undercuts_dense_at_all_keys(
    gpu: str, dim: int, dtype: torch.dtype
) -> None:
    site = kernels.SiteWork(2, 16, dim, dtype)
    kept = [1, 64, 65, 500, 2104, 5000, KEYS]
    found = [seconds(gpu, site.column_sparse_attention(LAST, TILE, columns), dtype) for columns in kept]
    assert found == sorted(found)
    assert found[4] > 1.5 * found[3]
    dense = seconds(gpu, site.dense(4096, KEYS), dtype)
    assert found[4] < dense / 2  # 20 %
    assert found[-1] > dense
    assert seconds(gpu, site.attention_stats(4096, KEYS), dtype) > dense


def test_faster_gpus_are_faster_where_products_bound() -> None:
    work = kernels.Work(flops=1e15, bytes=1e9)
    a100, h100, h200, b200 = (seconds(name, work) for name in ("a100", "h100", "h200", "b200"))
    assert a100 > h100 == h200 > b200
    assert h100 == pytest.approx(1e15 / (0.75 * 989.5e12) + roofline.LAUNCH_SECONDS)
    work = SITE.dense(4096, KEYS)
    found = [seconds(name, work) for name in ("a100", "h100", "h200", "b200")]
    assert found == sorted(found, reverse=True)
    # Reads of every step count, so H200's memory shows: 5.58 GB at 4.8 TB/s.
    assert found[2] == pytest.approx(work.bytes / 4.8e12 + roofline.LAUNCH_SECONDS)


def test_float32_is_held_against_its_own_peak() -> None:
    work = kernels.Work(flops=1e13)
    assert seconds("h100", work, torch.float32) > 10 * seconds("h100", work)
    with pytest.raises(KernelError, match=r"dtype: must be one of torch.bfloat16, .*, got torch.float64"):
        seconds("h100", work, torch.float64)


@pytest.mark.parametrize(
    ("work", "million"),
    [
        (SITE.select_columns(8, 2521, 2104), 3.6),
        (SITE.select_columns(15, 4121, 2104), 13.7),
        (SITE.map_columns(8, 32, 2104, 2533, KEYS), 6.0),
    ],
    ids=["select 2521", "select 4121", "map"],
)
def test_warp_instructions_are_those_counted_in_the_docs(work: kernels.Work, million: float) -> None:
    assert work.instructions == pytest.approx(million * 1e6, rel=0.05)
    # The docs' rate: 132 multiprocessors, 4 a clock, 1.98 GHz.
    assert roofline.issue_rate(kernels.find_gpu("h200")) == pytest.approx(132 * 4 * 1.98e9, rel=0.01)


def test_issue_rates_of_other_gpus() -> None:
    """Multiprocessors and boost clocks as in the datasheets; A100 has half the fp32 lanes, not half the schedulers."""
    assert roofline.issue_rate(kernels.find_gpu("a100")) == pytest.approx(108 * 4 * 1.41e9, rel=0.01)
    assert roofline.issue_rate(kernels.find_gpu("l40")) == pytest.approx(142 * 4 * 2.49e9, rel=0.01)


def test_bytes_of_mapping_are_those_counted_in_the_docs() -> None:
    work = SITE.map_columns(8, 32, 2104, 2533, KEYS)
    assert work.bytes == pytest.approx(24e6, rel=0.05)
    assert work.launches == 5
    direct = SITE.map_columns(15, 32, 2104, 2533, KEYS)  # fewer than three target tiles a source tile
    assert direct.launches == 4
    assert direct.instructions > 1.3 * work.instructions


def test_sampled_queries_make_column_sums_cheaper() -> None:
    whole, sampled, sparse = (SITE.column_sums((40, 40), TILE, 4121, stride) for stride in (1, 2, 4))
    assert whole.flops == 2 * 32 * 15 * 128 * 65 * 64 * 128
    assert sampled.flops == whole.flops / 4  # 32 of 128 queries
    assert sparse.flops == whole.flops / 8  # 8 queries fill half a block of 16
    assert whole.bytes > sampled.bytes > sparse.bytes > 32 * 15 * 4121 * 4
    parts = SITE.column_sums((40, 40), (16, 32), 4121, 1)  # 512 queries of a tile are four blocks
    assert parts.flops == pytest.approx(4 * 6 / 15 * whole.flops)


def test_what_moves_bytes_alone() -> None:
    small, large = 32 * 32 * 32 * 128, 32 * 64 * 64 * 128
    assert SITE.grown_correction((32, 32), LAST).bytes == (small + large) * (2 + 4 + 4)
    single = kernels.SiteWork(2, 16, 128, torch.float32).grown_correction((32, 32), LAST)
    assert (single.bytes, single.launches) == ((small + large) * 4, 1)
    assert seconds("h100", SITE.local_columns()) == 0
    plain, corrected = (SITE.column_sparse_attention(LAST, TILE, 2104, flag).bytes for flag in (False, True))
    assert corrected - plain == large * 2
    rows = SITE.select_columns(1, 40000, 100)  # rows too long for registers are read at every step
    assert rows.bytes == 32 * (21 * 40000 + 100) * 4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "H100 SXM"),
        ("H200 SXM", "H200 SXM"),
        ("a100", "A100 SXM 80 GB"),
        ("A100 80", "A100 SXM 80 GB"),
        ("b200", "B200"),
        ("  l40 ", "L40"),
    ],
)
def test_a_gpu_is_found_by_part_of_its_name(name: str, found: str) -> None:
    assert kernels.find_gpu(name).name == found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v100", "target GPU: must be one of A100 SXM 80 GB, L40, H100 SXM, H200 SXM, B200, got 'v100'"),
        ("", "target GPU: must be one of A100 SXM 80 GB, L40, H100 SXM, H200 SXM, B200, got ''"),
        ("h100 pcie", "must be one of A100"),
        ("sxm", "target GPU: must mean one GPU, got 'sxm', which means A100 SXM 80 GB, H100 SXM, H200 SXM"),
        ("H", "which means H100 SXM, H200 SXM"),
    ],
)
def test_a_gpu_that_is_not_known_or_not_named(name: str, says: str) -> None:
    with pytest.raises(OptionError) as raised:
        kernels.find_gpu(name)
    assert says in str(raised.value)


def test_the_fit_is_compiled_once() -> None:
    gpu = kernels.find_gpu("h100")
    roofline._fit.cache_clear()
    first = kernels.gpu_fit(gpu, BF16, 64)
    assert first.notes == ()
    assert first.seconds > 0
    assert kernels.gpu_fit(kernels.find_gpu("h200"), BF16, 64) is first  # the same architecture


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Facts that every kernel gets instead of being compiled."""
    fine: dict[str, Any] = {"spills": 0, "stack": 0, "shared": 1000, "matrix": "HGMMA"}

    def compiled(case: kernels.StaticCase) -> StaticFacts:
        return StaticFacts(block={}, registers=255, shared_limit=2000, flops=0, bytes=0, of_peak={}, **fine)

    monkeypatch.setattr(roofline, "static_compile", compiled)
    roofline._fit.cache_clear()
    yield fine
    roofline._fit.cache_clear()


def test_spills_and_missing_tensor_cores_are_noted(facts: dict[str, Any]) -> None:
    gpu = kernels.find_gpu("h100")
    assert kernels.gpu_fit(gpu, BF16, 128).notes == ()
    roofline._fit.cache_clear()
    facts.update(spills=4, matrix="")
    notes = kernels.gpu_fit(gpu, BF16, 128).notes
    assert len(notes) == 3
    assert notes[0].startswith("column_sparse_attention (pinned) sm_90 bf16 128: spills registers: 4 loads and stores")
    assert "multiplies without tensor cores" in notes[0]


def test_a_kernel_that_cannot_be_launched_there_is_an_error(facts: dict[str, Any]) -> None:
    facts.update(shared=3000)
    with pytest.raises(KernelError, match="must fit sm_90, got wants 3000 bytes of shared memory where there are 2000"):
        kernels.gpu_fit(kernels.find_gpu("h100"), BF16, 128)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    for predict in (
        lambda: kernels.SiteWork(1, 1, 64, BF16),
        lambda: kernels.gpu_fit(kernels.find_gpu("h100"), BF16, 64),
    ):
        with pytest.raises(KernelError, match="triton: must be installed where seconds of another GPU are predicted"):
            predict()


@pytest.mark.parametrize("dim", [0, 12, 512])
def test_a_head_dimension_without_kernels(dim: int) -> None:
    with pytest.raises(KernelError, match="head_dim: must be a multiple of 8 up to 256"):
        kernels.SiteWork(1, 1, dim, BF16)
