"""The Triton kernels of the column lists, compiled ahead of time and traced."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.support import FAKE_GPU

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = (("cuda", 80, 32), ("cuda", 89, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))
compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing compiles")


def cases() -> dict[str, Any]:
    from sparvar.kernels.map_columns import gpu as map_gpu
    from sparvar.kernels.select_columns import gpu as select_gpu

    return {case[-1]: case for case in (*select_gpu.aot_cases(), *map_gpu.aot_cases())}


def scratch_bytes(compiled: Any, folder: Path) -> int:
    """Return bytes of stack and spills per thread of a compiled kernel, as its assembler reports them."""
    if "amdgcn" in compiled.asm:
        found = re.findall(r"\.(?:private_segment_fixed_size|vgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"])
        assert len(found) == 2
    else:
        path = folder / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        report = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
        found = re.findall(r"(?:STACK|LOCAL):(\d+)", report.stdout)
        assert len(found) == 2
    return sum(map(int, found))


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target[1]))
def test_compiles_without_spills(target: tuple[str, Any, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, (kernel, signature, constants, warps, stages, _) in cases().items():
        source = ASTSource(kernel, signature, constants)
        options = {"num_warps": warps, "num_stages": stages}
        binary = triton.compile(source, target=GPUTarget(*target), options=options)
        assert scratch_bytes(binary, tmp_path) == 0, name
        assert binary.metadata.shared <= 48 * 1024, name


@compiled
def test_launches_match_the_signatures() -> None:
    for kernel, signature, constants, _, _, name in cases().values():
        assert list(signature) == kernel.arg_names, name
        assert {key for key, kind in signature.items() if kind == "constexpr"} == set(constants), name


TRACE = (
    FAKE_GPU
    + """

class Model(torch.nn.Module):
    def forward(self, sums):
        columns = kernels.select_columns(sums + 1, 7)
        schedule = kernels.Schedule((2, 4, 8), (2, 4, 8))
        return kernels.map_columns(columns, kernels.ColumnMap(schedule, 2, 3, (4, 4), "relative", 1, 3))


with FakeTensorMode(), torch.no_grad():
    module = aot_export_module(Model(), (torch.empty(1, 2, 1, 20, device="cuda"),), trace_joint=False)[0]
names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
kernels_of_select = [node for node in module.graph.nodes if "triton_kernel_wrapper_functional" in str(node.target)]
assert [set(node.kwargs["tensors_to_clone"]) for node in kernels_of_select] == [{"indices", "counts"}], names
assert "sparvar.select_columns.default" not in names and "sparvar.map_columns.default" in names, names
"""
)


@compiled
def test_traced_select_is_its_kernel_and_map_stays_whole() -> None:
    subprocess.run([sys.executable, "-c", TRACE], check=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
