"""Programs that AOTInductor compiled: what the model rounds to 16 bits they round, too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparvar.errors import OutputError, SparvarWarning
from sparvar.export.formats import aoti
from sparvar.export.formats.aoti_worker import SETTINGS, compile_program, settings_of
from sparvar.export.publish import Target
from sparvar.export.trace import Program, export_graph
from sparvar.private_files import read_sealed, seal_path, write_sealed


class Chain(nn.Module):
    """Elementwise ops that a compiler fuses; in 16 bits each of them rounds."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        low = x.to(self.dtype)
        for number in range(1, 6):
            low = low * (1 + 0.01 * number) + low.square() * 0.3
        return low.float()


@pytest.mark.aot
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_where_the_model_rounds_them(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 4096)
    module = Chain(dtype)
    exported = export_graph(module, [x])
    torch.export.save(exported, tmp_path / "source.pt2")
    compile_program(tmp_path / "source.pt2", tmp_path / "program.pt2")
    assert read_sealed(tmp_path / "program.pt2"), "its checksum is beside it"
    found = torch._inductor.aoti_load_package(str(tmp_path / "program.pt2"))(x)
    found = found[0] if isinstance(found, list | tuple) else found
    torch.testing.assert_close(found, module(x), rtol=0, atol=0)
    # The check can fail: computed in fp32 and rounded at the end, most of the values are others.
    fused = Chain(torch.float32)(x.to(dtype).float()).to(dtype).float()
    assert (fused != module(x)).float().mean() > 0.2


def test_fp32_programs_are_compiled_as_before() -> None:
    assert settings_of(export_graph(Chain(torch.float32), [torch.zeros(4)])) == SETTINGS


class Compiler:
    """Stands in for a compiling process: notes what it is asked for."""

    asked: list[str]

    def compile(self, exported: Any, target: Path, name: str) -> None:
        type(self).asked.append(name)
        write_sealed(target, b"compiled " + name.encode())

    def stop(self) -> None:
        """Nothing runs."""


def loose(path: Path) -> None:
    path.chmod(0o666)


def foreign(path: Path) -> None:
    if not hasattr(os, "getuid") or os.getuid() != 0:
        pytest.skip("needs the right to give files away")
    os.chown(path, 12345, 12345)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "must have the checksum in"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "must have the checksum in"),
        (lambda path: seal_path(path).unlink(), "must have its checksum in"),
        (lambda path: seal_path(path).write_bytes(seal_path(path.parent / "b.pt2").read_bytes()), "the checksum in"),
        (loose, "must be writable for you alone"),
        (lambda path: loose(seal_path(path)), "must be writable for you alone"),
        (foreign, "must belong to you, got user 12345"),
        (lambda path: foreign(seal_path(path)), "must belong to you, got user 12345"),
    ],
)  # fmt: skip
def test_packages_of_a_stopped_export_are_checked(
    harm: Callable[[Path], Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be run and vouched for: what is not as it was sealed is compiled again."""
    monkeypatch.setattr(aoti, "_Worker", Compiler)
    monkeypatch.setattr(Compiler, "asked", [], raising=False)
    monkeypatch.setattr(aoti, "program_key", lambda exported: "key")
    programs: Any = {name: Program(name, 1, "begin", None, [], []) for name in ("a", "b")}  # type: ignore[arg-type]
    made = aoti.compile_all(programs, tmp_path / "aoti", jobs=1)
    write_sealed(tmp_path / "aoti" / "b.pt2", b"compiled a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aoti.compile_all(programs, tmp_path / "aoti", jobs=1) == made
    assert sorted(Compiler.asked) == ["a", "b"]
    harm(made["a"])
    with pytest.warns(SparvarWarning, match=rf"{made['a'].name}(\.sha256)?: .*{says}.*; it is compiled again"):
        aoti.compile_all(programs, tmp_path / "aoti", jobs=1)
    assert Compiler.asked[2:] == ["a"] and read_sealed(made["a"]) == b"compiled a"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_the_folder_of_an_export_is_the_users_alone(tmp_path: Path) -> None:
    target = Target(tmp_path / "small")
    work = tmp_path / ".small.partial"
    mask = os.umask(0)
    try:
        with target.building():
            assert work.stat().st_mode & 0o777 == 0o700
        work.chmod(0o777)
        with target.building():
            assert work.stat().st_mode & 0o022 == 0
    finally:
        os.umask(mask)
    foreign(work)
    with pytest.raises(OutputError, match=r"must belong to you, got user 12345; what is compiled there is run: delete"):
        target.building().__enter__()
