"""Build, cache and choice of the native kernels, their threads, and the accuracy of their exp2."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparvar import kernels
from sparvar.errors import KernelError, OptionError, SparvarWarning
from sparvar.kernels.common import native
from tests.kernels.support import qkv, tiles_of

needs_compiler = pytest.mark.skipif(
    not kernels.native_status().usable, reason=f"no native kernels: {kernels.native_status().reason}"
)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without a compiler and without a cache."""
    monkeypatch.setenv("SPARVAR_CXX", "no-such-compiler")
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path))
    with forgotten(monkeypatch):
        yield


class forgotten:
    """Forget what is loaded for the length of a block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __enter__(self) -> None:
        for name in ("asked", "loaded"):
            self.monkeypatch.setattr(native._Choice, name, None)
        native._build.cache_clear()
        native._warn.cache_clear()

    def __exit__(self, *_: object) -> None:
        native._build.cache_clear()


def run_python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def attend() -> torch.Tensor:
    torch.manual_seed(3)
    return kernels.attention_stats(*qkv(1, 2, 8, 12, 16), 0.25)[0]


def test_auto_warns_once_and_runs_torch_ops(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "auto")
    with pytest.warns(SparvarWarning, match=r"no-such-compiler: not found; install a C"):
        out = attend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend()
    assert out.isfinite().all()
    status = kernels.native_status()
    assert not status.usable and status.implementation == "portable" and "no-such-compiler" in status.reason


def test_native_raises_without_a_compiler(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "native")
    with pytest.raises(KernelError, match=r"find a working C.* compiler.*no-such-compiler.*=portable"):
        attend()
    assert not kernels.native_status().usable  # doctor never raises


def test_portable_never_builds(no_compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "portable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend()
    assert not list(tmp_path.iterdir())
    assert kernels.implementation("cpu") == "portable"


def test_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "fast")
    with pytest.raises(OptionError, match="must be auto, native or portable, got 'fast'"):
        attend()


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'error: no space left' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SPARVAR_CXX", str(compiler))
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "native")
    with forgotten(monkeypatch), pytest.raises(KernelError, match="error: no space left"):
        attend()
    assert not list((tmp_path / "cache").glob("*.so")) and not list((tmp_path / "cache").glob("*.tmp"))


def test_other_devices_are_portable() -> None:
    assert kernels.implementation("cuda") == "portable"


@needs_compiler
def test_status_names_the_library() -> None:
    status = kernels.native_status()
    assert status.implementation == kernels.implementation("cpu") == "native"
    assert Path(status.library).is_file() and status.isa in ("avx512", "avx2", "neon", "generic")
    assert set(dataclasses.asdict(status)) == {
        "usable",
        "reason",
        "compiler",
        "library",
        "isa",
        "implementation",
        "notes",
    }


BUILD = """
    from sparvar import kernels
    print(kernels.native_status().library)
"""


@pytest.mark.slow
@needs_compiler
def test_processes_share_one_build_and_damage_is_repaired(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {**os.environ, "SPARVAR_CACHE_DIR": str(tmp_path), "SPARVAR_CPU_KERNELS": "native"}
    command = [sys.executable, "-c", textwrap.dedent(BUILD)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in running}
    assert len(paths) == 1
    library = Path(paths.pop())
    left = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert left == {library.name, f"{library.name}.sha256"}

    library.write_bytes(b"damaged")
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "native")
    with forgotten(monkeypatch):
        assert kernels.native_status().library == str(library)
        written = library.stat()
        assert written.st_size > 1000, "a damaged library is built again"
    with forgotten(monkeypatch):
        assert kernels.native_status().library == str(library)
        assert library.stat().st_mtime_ns == written.st_mtime_ns, "a whole one is loaded from the cache"


OTHER_WIDTHS = [(["-mno-avx512f"], "avx2"), (["-mno-avx"], "generic")]


@needs_compiler
@pytest.mark.skipif(kernels.native_status().isa not in ("avx512", "avx2"), reason="flags of x86 machines")
@pytest.mark.parametrize(("flags", "isa"), OTHER_WIDTHS)
def test_narrower_vectors_give_the_same(
    flags: list[str], isa: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wide = attend()
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "native")
    monkeypatch.setattr(native, "ARCHITECTURE_FLAGS", (tuple(["-march=native", *flags]),))
    with forgotten(monkeypatch):
        assert kernels.native_status().isa == isa
        torch.testing.assert_close(attend(), wide, rtol=1e-5, atol=1e-6)
        from tests.kernels import test_attention_stats, test_column_sparse_attention

        for dtype in (torch.float32, torch.float16):
            test_attention_stats.test_head_dims_and_dtypes("native", 104, dtype)
            test_column_sparse_attention.test_head_dims_and_dtypes("native", 120, dtype)
        test_column_sparse_attention.test_geometries_and_shared_lists("native", tiles_of(20, 20, 20, 18), (1, 3))


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes() -> None:
    code = """
        import os, torch
        from sparvar import kernels
        torch.set_num_threads(2)
        inputs = [torch.randn(1, 4, 300, 64) for _ in range(3)]
        before = kernels.attention_stats(*inputs, 0.125)[0]
        expected = bytes(before.transpose(1, 2).numpy())
        child = os.fork()
        if child == 0:
            # torch's own parallel ops would hang here: compare bytes
            outs = [kernels.attention_stats(*inputs, 0.125)[0] for _ in range(3)]
            os._exit(0 if all(bytes(x.transpose(1, 2).numpy()) == expected for x in outs) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(kernels.attention_stats(*inputs, 0.125)[0], before)
        print("done")
    """
    assert run_python(code) == "done"


@needs_compiler
def test_exp2_is_within_two_ulp(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query, keys that are the exponents: with scale = ln 2 the column sums are 2^x (idle lanes add < 2^-122)."""
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", "native")
    scale = math.log(2)
    factor = torch.tensor(scale) * torch.tensor(1.4426950408889634)
    assert float(factor) == 1.0, "the kernel's scale times log2(e) rounds to one"
    exponents = -torch.cat((torch.rand(60000) * 90, torch.arange(91.0), torch.rand(5000) * 1e-3))
    k = torch.zeros(1, 1, len(exponents), 8)
    k[..., 0] = exponents
    q = torch.ones(1, 1, 1, 8)
    sums = kernels.column_sums(q, k, torch.zeros(1, 1, 1), scale, tiles_of(1, 1, 1, 1))[0, 0, 0].double()
    exact = torch.exp2(exponents.double())
    ulp = torch.exp2(torch.floor(exponents.double())) * 2.0**-23
    assert float((sums - exact).abs().div(ulp).max()) <= 2.0


def test_cpu_features_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    first = native._key(["c++"], "1")
    monkeypatch.setattr(native, "_cpu_features", lambda: "another machine")
    assert native._key(["c++"], "1") != first != native._key(["c++"], "2")
