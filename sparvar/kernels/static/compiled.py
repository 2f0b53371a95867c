"""Compilation of one case with no GPU present, and what the machine code says. Triton is imported when it is used."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sparvar.errors import KernelError, message
from sparvar.kernels.common.torch_compat import gluon_source
from sparvar.kernels.static.arithmetic import ELEMENTS, step_arithmetic
from sparvar.kernels.static.cases import LISTS, StaticCase
from sparvar.kernels.static.targets import GPUS, TARGETS, Target

TILE = (8, 16)
INTEGERS = ("indices_ptr", "counts_ptr", "good_ptr")
WIDE = ("lse_ptr", "entropy_ptr", "sums_ptr")
# Names of matrix instructions: mma.sync, wgmma and tcgen05.mma in SASS, MFMA on AMD.
MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA)\b|\b(v_mfma)_")


@dataclass(frozen=True)
class StaticFacts:
    """What the machine code of a case says, and the arithmetic of one step of its loop.

    `shared` and `stack` in bytes per program and per thread. `spills`: loads and stores of spilled registers in the
    code. `matrix`: the matrix instruction found, empty where fp32 runs on ordinary units and for column lists, of which
    `flops` and `bytes` are 0 and `block` has one row. `flops` counts head
    dimensions as padded; `bytes` is what a step reads of K, V and indices, so `flops / bytes` holds where nothing of
    it is in the cache. `of_peak`: GPU to the share of its peak that this allows, were every read from memory.
    """

    block: dict[str, int]
    registers: int
    spills: int
    stack: int
    shared: int
    shared_limit: int
    matrix: str
    flops: int
    bytes: int
    of_peak: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def static_toolchain() -> dict[str, str]:
    """Return the versions that the figures depend on."""
    import triton

    return {"triton": triton.__version__, "torch": torch.__version__.split("+")[0]}


def _constants(case: StaticCase, block: Any, names: list[str]) -> dict[str, Any]:
    from sparvar.kernels.column_sums.gpu import SPAN
    from sparvar.kernels.common.blocks import block_dim

    every = {
        "TILE_H": TILE[0],
        "TILE_W": TILE[1],
        "STRIDE": 1,
        "DIM": case.head_dim,
        "BLOCK_D": block_dim(case.head_dim),
        "BLOCK_M": block.m,
        "BLOCK_N": block.n,
        "SPAN": SPAN,
        "RUNS": case.variant == "runs",
        "EXTRA": case.variant == "correction",
        "ENTROPY": case.variant != "without entropy",
        "WIDEN": False,
    }
    return {name: value for name, value in every.items() if name in names}


def _type(name: str, case: StaticCase, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in INTEGERS:
        return "*i32"
    if name in WIDE:
        return "*fp32"
    if name.endswith("_ptr"):
        return f"*{case.dtype}"
    return "fp32" if name == "scale" else "i32"


def _source(case: StaticCase, kind: Any, kernel: Any, constants: dict[str, Any]) -> Any:
    """Return what is compiled: `kind` is `ASTSource`, or that of Gluon. Pointers are aligned as torch allocates."""
    signature = {name: _type(name, case, constants) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")}
    return kind(kernel, signature, constants, aligned)


def _compiled(case: StaticCase, source: Any, options: dict[str, int]) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    target = TARGETS[case.target]
    return triton.compile(source, target=GPUTarget(target.backend, target.arch, target.warp), options=options)


def _build_list(case: StaticCase) -> tuple[Any, dict[str, int]]:
    """`_build` of a kernel of column lists, which says itself how it is compiled."""
    from triton.compiler import ASTSource

    from sparvar.kernels.map_columns import gpu as mapped
    from sparvar.kernels.select_columns import gpu as selected

    cases = {name: rest for *rest, name in (*selected.aot_cases(), *mapped.aot_cases())}
    kernel, signature, constants, warps, stages = cases[f"{case.kernel} {case.variant}"]
    compiled = _compiled(case, ASTSource(kernel, signature, constants), {"num_warps": warps, "num_stages": stages})
    return compiled, {"m": 1, "n": constants["BLOCK"] + constants.get("REST", 0), "warps": warps, "stages": stages}


def _build_hopper(case: StaticCase) -> tuple[Any, dict[str, int]]:
    """`_build` of the Gluon kernel of `column_sparse_attention`: four warps for each 64 queries, four to load."""
    from sparvar.kernels.column_sparse_attention import hopper

    kernel = hopper.column_sparse_hopper_kernel
    block = {"m": 128, "n": hopper.BLOCK_N, "warps": 12, "stages": hopper.STAGES}
    constants = {
        "TILE_H": TILE[0],
        "TILE_W": TILE[1],
        "DIM": case.head_dim,
        "BLOCK_N": hopper.BLOCK_N,
        "STAGES": hopper.STAGES,
        "EXTRA": False,
        "CHECK": True,
    }
    return _compiled(case, _source(case, gluon_source, kernel, constants), {"num_warps": 4}), block


def _build(case: StaticCase) -> tuple[Any, dict[str, int]]:
    """Return the compiled kernel and its block. Integers are not specialised, so the code serves every call."""
    if case.kernel in LISTS:
        return _build_list(case)
    from triton.compiler import ASTSource

    from sparvar.kernels.attention_stats import gpu as stats
    from sparvar.kernels.column_sparse_attention import gpu as sparse
    from sparvar.kernels.column_sums import gpu as sums

    kernel, module = {
        "column_sparse_attention": (sparse.column_sparse_kernel, sparse),
        "attention_stats": (stats.attention_stats_kernel, stats),
        "column_sums": (sums.column_sums_kernel, sums),
    }[case.kernel]
    hip = TARGETS[case.target].backend == "hip"
    if case.variant == "hopper":
        return _build_hopper(case)
    options = {"runs": True} if case.variant == "runs" else {}
    if case.kernel == "column_sums" and case.target == "sm_90":
        options["hopper"] = True
    block = module.pinned(case.head_dim, ELEMENTS[case.dtype], hip, **options)
    constants = _constants(case, block, kernel.arg_names)
    source = _source(case, ASTSource, kernel, constants)
    return _compiled(case, source, {"num_warps": block.warps, "num_stages": block.stages}), block._asdict()


def _tool(name: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise KernelError(message(f"{name} of triton", "read a kernel", done.stderr.strip()[-500:]))
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise KernelError(message("machine code", f"have {pattern}", text[:200]))
    return int(found[1])


def _matrix(code: str) -> str:
    kinds = sorted({first or second for first, second in MATRIX.findall(code)})
    return ", ".join(kinds)


def _read_nvidia(compiled: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    return {
        "registers": _number(r"\bREG:(\d+)", usage),
        "stack": _number(r"\bSTACK:(\d+)", usage),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "matrix": _matrix(code),
    }


def _read_amd(compiled: Any) -> dict[str, Any]:
    code = compiled.asm["amdgcn"]
    return {
        "registers": _number(r"\.vgpr_count:\s*(\d+)", code),
        "stack": _number(r"\.private_segment_fixed_size:\s*(\d+)", code),
        "spills": _number(r"\.vgpr_spill_count:\s*(\d+)", code) + _number(r"\.sgpr_spill_count:\s*(\d+)", code),
        "matrix": _matrix(code),
    }


def _arithmetic(case: StaticCase, block: dict[str, int]) -> tuple[int, int]:
    """Return FLOPs and bytes of one step; 0 for column lists."""
    if case.kernel in LISTS:
        return 0, 0
    return step_arithmetic(case.kernel, block, case.head_dim, ELEMENTS[case.dtype].itemsize)


def _of_peak(case: StaticCase, target: Target, flops: int, loaded: int) -> dict[str, float]:
    shares = {}
    for gpu in GPUS if loaded else ():
        if gpu.target == target.name:
            peak = gpu.tflops_32 if case.dtype == "fp32" else gpu.tflops_16
            shares[gpu.name] = round(min(1.0, flops / loaded * gpu.gigabytes / (1000 * peak)), 3)
    return shares


def static_compile(case: StaticCase) -> StaticFacts:
    """Compile a case for a GPU that need not be there, and read its machine code.

    Raises `KernelError` where Triton cannot compile it or the code lacks what it must say.
    """
    target = TARGETS[case.target]
    try:
        compiled, block = _build(case)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise KernelError(message(case.name, "compile", f"{type(error).__name__}: {str(error)[:500]}")) from error
    read = _read_nvidia(compiled) if target.backend == "cuda" else _read_amd(compiled)
    flops, loaded = _arithmetic(case, block)
    return StaticFacts(
        block=block,
        shared=int(compiled.metadata.shared),
        shared_limit=target.shared,
        flops=flops,
        bytes=loaded,
        of_peak=_of_peak(case, target, flops, loaded),
        **read,
    )


def static_problems(case: StaticCase, facts: StaticFacts) -> list[str]:
    """Return what a kernel that is fit to run may not have: spills, a stack, too much memory, no matrix instruction."""
    problems = []
    if facts.spills or facts.stack:
        problems.append(f"spills registers: {facts.spills} loads and stores, {facts.stack} bytes of stack")
    if facts.shared > facts.shared_limit:
        problems.append(f"wants {facts.shared} bytes of shared memory where there are {facts.shared_limit}")
    if case.kernel in LISTS:
        return problems
    if case.dtype != "fp32" and not facts.matrix:
        problems.append("multiplies without tensor cores")
    if case.target == "sm_90" and case.dtype != "fp32" and facts.matrix != "HGMMA":
        problems.append(f"multiplies with {facts.matrix} where there is HGMMA")
    return problems
