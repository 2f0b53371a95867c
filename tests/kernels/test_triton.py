"""The Triton kernels: the interpreter's tests in their own process, and what AOTAutograd makes of the ops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.support import FAKE_GPU

FOLDER = Path(__file__).parent / "triton"
FILES = {path.name: path for path in sorted(FOLDER.glob("test_*.py"))}
ROOT = Path(__file__).parents[2]


def test_the_interpreters_tests_are_found() -> None:
    assert {"test_attention_stats.py", "test_column_sparse.py", "test_column_sums.py"} <= set(FILES)


FAST = "test_attention_stats.py"


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in FILES])
def test_interpreter(name: str) -> None:
    """Run one file of tests/kernels/triton with kernels interpreted: every test passes and none is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FILES[name])],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    summary = done.stdout.splitlines()[-1]
    assert re.match(r"\d{2,} passed", summary) and "skipped" not in summary, summary


TRACE = (
    FAKE_GPU
    + """

class Model(torch.nn.Module):
    def forward(self, q, k, v, indices, counts):
        tiles = kernels.QueryTiles((4, 6), (2, 6))
        out, lse, entropy = kernels.attention_stats(q * 2, k, v, 0.125)
        sums = kernels.column_sums(q, k, lse, 0.125, tiles)
        columns = kernels.Columns(indices, counts)
        sparse = kernels.column_sparse_attention(q * 3, k, v, columns, 0.125, tiles, out)
        return sparse + 1, sums, entropy


def graph(dtype, device="cuda"):
    with FakeTensorMode(), torch.no_grad():
        q = torch.empty(2, 24, 3, 64, device=device, dtype=dtype).transpose(1, 2)
        k, v = (torch.empty(2, 3, 60, 64, device=device, dtype=dtype) for _ in range(2))
        indices = torch.empty(1, 1, 2, 20, device=device, dtype=torch.int32)
        counts = torch.empty(1, 1, 2, device=device, dtype=torch.int32)
        return aot_export_module(Model(), (q, k, v, indices, counts), trace_joint=False)[0]


def names(module):
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def count(module, part):
    return sum(part in name for name in names(module))
"""
)


def trace(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TRACE + code],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_traced_ops_become_kernels_that_write_only_their_outputs() -> None:
    trace("""
module = graph(torch.bfloat16)
assert count(module, "sparvar") == 0, names(module)
calls = [node for node in module.graph.nodes if "triton_kernel_wrapper_functional" in str(node.target)]
written = [set(node.kwargs["tensors_to_clone"]) for node in calls]
assert written == [{"out_ptr", "lse_ptr", "entropy_ptr"}, {"sums_ptr"}, {"good_ptr"}, {"out_ptr"}], written
assert count(module, "_assert_async") == 1
for node, like in zip(module.graph.find_nodes(op="output")[0].args[0], ((2, 3, 24, 64), (2, 3, 2, 60), (2, 3, 24))):
    assert node.meta["val"].shape == like
""")


def test_unchecked_lists_cost_no_kernel() -> None:
    trace(
        'module = graph(torch.bfloat16)\nassert count(module, "_assert_async") == 0\n'
        'assert count(module, "triton_kernel_wrapper_functional") == 3',
        SPARVAR_GPU_CHECKS="off",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("module = graph(torch.float64)", {}),
        ("module = graph(torch.bfloat16)", {"SPARVAR_GPU_KERNELS": "portable"}),
        ('module = graph(torch.bfloat16, "cpu")', {}),
        # what torch.export sets, whose programs keep the op
        ("with config.patch(decompose_custom_triton_ops=False):\n    module = graph(torch.bfloat16)", {}),
    ],
    ids=["float64", "portable", "cpu", "export"],
)
def test_other_calls_keep_the_op(code: str, variables: dict[str, str]) -> None:
    trace(code + '\nassert count(module, "sparvar") == 3, names(module)', **variables)


def test_the_cache_of_aotautograd_knows_the_kernels() -> None:
    trace("""
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses import FakeTensorMode
with FakeTensorMode(), torch.no_grad():
    q = torch.empty(1, 1, 8, 64, device="cuda", dtype=torch.float16)
    kernels.attention_stats(q, q, q, 1.0)
    (kernel,) = get_triton_kernels_for_op(torch.ops.sparvar.attention_stats.default._name)
    assert kernel.__name__ == "attention_stats_kernel"
    kernels.attention_stats(q.double(), q.double(), q.double(), 1.0)
    assert get_triton_kernels_for_op("sparvar::attention_stats") == []
""")
