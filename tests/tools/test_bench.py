from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.tools.bench import ops as bench_ops
from sparvar.tools.bench import static as bench_static
from tests.tools.conftest import Tiny


@pytest.mark.slow
def test_generate_quick(invoke: Any, tiny: Tiny, tmp_path: Path) -> None:
    done = invoke("bench", "generate", "--quick", "--json", tmp_path / "out.json", *tiny.options)
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["seconds"]) == {"eager", "sparse"}
    assert result["speedup"]["eager"]["n"] == 1
    assert result["rewritten_sites"] == result["plan"]["planned_sites"]
    assert result["outside_kernels"]["share"] > 0
    assert result["outside_kernels"]["calls"] == 2 * 13
    assert result["machine"]["threads"] >= 1
    assert "sparse" in done.stdout


def test_a_result_file_that_cannot_be_written_is_told_first(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = invoke("bench", "ops", "--json", tmp_path / "file" / "ops.json")
    assert done.exit_code == 1
    assert "must be a writable folder" in done.stderr


def test_bench_alone_is_a_usage_error(invoke: Any) -> None:
    assert invoke("bench").exit_code == 2
    assert invoke("bench", "--quick", "ops").exit_code == 2


@torch.inference_mode()
def test_the_loop_that_ours_is_compared_with_is_column_sparse_attention() -> None:
    q, k, v = bench_ops._inputs(2, 7)  # 16x16 queries
    tiles = bench_ops.tile_queries(16)
    indices = torch.stack([torch.randperm(k.shape[2])[:50].sort().values for _ in range(2 * len(tiles))])
    indices = indices.view(1, 2, len(tiles), 50).int()
    columns = kernels.Columns(indices, torch.full(indices.shape[:-1], 50, dtype=torch.int32))
    ours = kernels.column_sparse_attention(q, k, v, columns, 64**-0.5, kernels.QueryTiles((16, 16), (8, 16)))
    torch.testing.assert_close(bench_ops.gather_and_sdpa(q, k, v, columns, tiles), ours)


def test_a_variant_that_disagrees_is_an_error() -> None:
    with pytest.raises(KernelError, match="must agree with SDPA"):
        bench_ops._check("x", torch.zeros(2), torch.tensor([0.0, float("nan")]))


def test_run_case_takes_ratios_in_both_directions() -> None:
    def nothing() -> None:
        sum(range(1000))

    case = bench_ops.Case("x", "y", {}, {"ours": nothing, "other": nothing}, reach={"other": 1.0})
    found = bench_ops.run_case(case, rounds=5)
    assert found["ratios"]["other"]["n"] == 5
    assert found["ratio"].startswith("other / ours")
    case.cost = True
    assert bench_ops.run_case(case, rounds=1)["ratio"].startswith("ours / other")


@pytest.mark.slow
def test_static_quick(invoke: Any, tmp_path: Path) -> None:
    done = invoke("bench", "ops", "--static", "--quick", "--json", tmp_path / "static.json")
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "static.json").read_text())
    assert len(result["cases"]) == 12 and {case["dtype"] for case in result["cases"]} == {"bf16"}
    assert all(case["spills"] == case["stack"] == 0 and case["matrix"] for case in result["cases"])
    assert "HGMMA" in done.stdout and "UTCHMMA" in done.stdout


def test_static_problems_end_with_an_error() -> None:
    case = {"kernel": "column_sums", "variant": "pinned", "target": "sm_80", "dtype": "bf16", "head_dim": 64}
    with pytest.raises(KernelError, match=r"column_sums .pinned. sm_80 bf16 64: must be fit to run, got spills"):
        bench_static.refuse_problems({"cases": [{**case, "problems": ["spills registers"]}]})
