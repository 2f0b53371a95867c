"""The Triton kernels compiled ahead of time, against the committed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels.static import compiled
from sparvar.kernels.static.cases import LISTS

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "static-kernels.json"
COMPILED_HERE = [
    kernels.StaticCase("column_sparse_attention", "pinned", "sm_90", "bf16", 128),
    kernels.StaticCase("column_sparse_attention", "hopper", "sm_90", "bf16", 128),
    kernels.StaticCase("column_sparse_attention", "correction", "sm_89", "fp16", 64),
    kernels.StaticCase("attention_stats", "pinned", "sm_80", "bf16", 104),
    kernels.StaticCase("column_sums", "pinned", "sm_100", "bf16", 96),
    kernels.StaticCase("column_sparse_attention", "pinned", "sm_80", "fp32", 64),
    kernels.StaticCase("select_columns", "T=2521", "sm_90", "fp32", 0),
    kernels.StaticCase("select_columns", "T=40000", "sm_100", "fp32", 0),
    kernels.StaticCase("map_columns", "gather", "sm_80", "int32", 0),
    kernels.StaticCase("map_columns", "compact", "gfx942", "int32", 0),
    kernels.StaticCase("map_columns", "spread", "sm_89", "int32", 0),
]


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TABLE.read_text())
    return content


def test_the_table_is_complete_and_without_problems(table: dict[str, Any]) -> None:
    assert not table["quick"]
    rows = {(row["kernel"], row["variant"], row["target"], row["dtype"], row["head_dim"]) for row in table["cases"]}
    assert rows == {(c.kernel, c.variant, c.target, c.dtype, c.head_dim) for c in kernels.static_cases()}
    assert len(rows) == len(table["cases"])
    assert [row for row in table["cases"] if row["problems"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED_HERE, ids=lambda case: case.name)
def test_no_kernel_got_worse(case: kernels.StaticCase, table: dict[str, Any]) -> None:
    """With another toolchain registers and memory may differ; spills and missing tensor cores are wrong with any."""
    facts = kernels.static_compile(case)
    assert kernels.static_problems(case, facts) == []
    (row,) = (
        row
        for row in table["cases"]
        if (row["kernel"], row["variant"], row["target"], row["dtype"], row["head_dim"])
        == (case.kernel, case.variant, case.target, case.dtype, case.head_dim)
    )
    assert row["matrix"] == facts.matrix
    if table["toolchain"]["triton"] == kernels.static_toolchain()["triton"]:
        remedy = "if that is meant: sparvar bench ops --static --json benchmarks/results/static-kernels.json"
        for name in ("registers", "shared"):
            assert getattr(facts, name) <= row[name], f"{name} were {row[name]}; {remedy}"


def test_the_kernels_of_lists_are_those_that_are_launched() -> None:
    pytest.importorskip("triton")
    from sparvar.kernels.map_columns import gpu as map_gpu
    from sparvar.kernels.select_columns import gpu as select_gpu

    names = [case[-1] for case in (*select_gpu.aot_cases(), *map_gpu.aot_cases())]
    assert names == [f"{kernel} {variant}" for kernel, (_, variants) in LISTS.items() for variant in variants]
    assert {case[0] for case in map_gpu.aot_cases()} == set(map_gpu.KERNELS)


def test_lists_need_no_tensor_cores_and_may_not_spill() -> None:
    case = kernels.StaticCase("map_columns", "gather", "sm_90", "int32", 0)
    block = {"m": 1, "n": 512, "warps": 4, "stages": 3}
    fine = kernels.StaticFacts(block, 56, 0, 0, 64, 232_448, "", 0, 0, {})
    assert kernels.static_problems(case, fine) == []
    bad = kernels.StaticFacts(block, 255, 2, 8, 64, 232_448, "", 0, 0, {})
    assert kernels.static_problems(case, bad) == ["spills registers: 2 loads and stores, 8 bytes of stack"]
    assert case.name == "map_columns (gather) sm_90 int32"


def test_problems_are_named() -> None:
    case = kernels.StaticCase("attention_stats", "pinned", "sm_90", "bf16", 128)
    block = {"m": 128, "n": 64, "warps": 8, "stages": 3}
    bad = kernels.StaticFacts(block, 255, 3, 16, 300_000, 232_448, "HMMA", 1, 1, {})
    spills, memory, cores = kernels.static_problems(case, bad)
    assert spills == "spills registers: 3 loads and stores, 16 bytes of stack"
    assert memory == "wants 300000 bytes of shared memory where there are 232448"
    assert cores == "multiplies with HMMA where there is HGMMA"
    none = kernels.StaticFacts(block, 255, 0, 0, 0, 1, "", 1, 1, {})
    assert kernels.static_problems(case, none)[0] == "multiplies without tensor cores"
    plain = kernels.StaticCase("attention_stats", "pinned", "sm_90", "fp32", 128)
    assert kernels.static_problems(plain, none) == []


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(KernelError, match="kernel: must be one of column_sparse_attention, attention_stats"):
        kernels.static_cases("conv")


LAUNCHED = ["column_sparse_attention", "attention_stats", "column_sums", "lists"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_sizes_of_one_compile(name: str) -> None:
    """Triton makes constants of integer arguments that are 1; the interpreter does not, so this path shows here."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparvar.kernels.attention_stats.gpu import attention_stats_kernel
    from sparvar.kernels.column_sparse_attention.gpu import column_sparse_kernel
    from sparvar.kernels.column_sparse_attention.gpu_lists import check_lists_kernel
    from sparvar.kernels.column_sums.gpu import column_sums_kernel
    from sparvar.kernels.common.blocks import Block

    found = (column_sparse_kernel, attention_stats_kernel, column_sums_kernel, check_lists_kernel)
    kernel = dict(zip(LAUNCHED, found, strict=True))[name]
    case = kernels.StaticCase(name, "pinned", "sm_90", "bf16", 64)
    constants = {**compiled._constants(case, Block(64, 32, 4, 2), kernel.arg_names)}
    if name == "lists":
        constants["BLOCK"] = 1024
    signature = {argument: compiled._type(argument, case, constants) for argument in kernel.arg_names}
    ones = {argument: 1 for argument, kind in signature.items() if kind == "i32"}
    signature = {argument: "constexpr" if argument in ones else kind for argument, kind in signature.items()}
    if name == "lists":
        signature["good_ptr"] = "*i32"
    source = ASTSource(kernel, signature, {**constants, **ones}, {})
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm
