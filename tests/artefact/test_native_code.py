"""Native code runs only where it is trusted, whatever the files that hold it are called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sparvar
from sparvar.artefact import pack, read_manifest, require_trust, verify
from sparvar.artefact.formats import FORMATS
from sparvar.artefact.manifest import consistency
from sparvar.artefact.manifest.reading import parse_manifest
from sparvar.errors import ArtefactError
from tests.artefact.factory import document
from tests.artefact.planted import needs_compiler, package, planted_library, with_program, write


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARVAR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "the-code-ran"


@pytest.fixture
def library(tmp_path: Path, mark: Path) -> bytes:
    return planted_library(tmp_path / "build", mark)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sparvar.tools", *arguments]
    return subprocess.run(words, env=dict(os.environ), capture_output=True, text=True, check=False)


def nothing_runs(place: Path, mark: Path, says: str, format: str = "aoti") -> None:
    """Loading and verifying are errors, and the planted code did not run."""
    for call in (sparvar.load, verify):
        with pytest.raises(ArtefactError, match=re.escape(says)):
            call(place, format=format)
    assert not mark.exists()


def nothing_runs_by_command(place: Path, mark: Path, says: str, format: str = "aoti") -> None:
    """The same of ``sparvar run`` and ``sparvar verify``."""
    image = str(place.parent / "image.png")
    for words in (["run", str(place), "--label", "sea", "--out", image], ["verify", str(place)]):
        done = command(*words, "--format", format)
        assert done.returncode == 1 and says in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.aot
@needs_compiler
@pytest.mark.parametrize("name", ["begin.dat", "begin.PT2", "begin.pt2.dat", "begin", "begin.onnx", "README.md"])
def test_a_program_under_another_name_does_not_run(tmp_path: Path, mark: Path, library: bytes, name: str) -> None:
    manifest = with_program("aoti", name)
    write(tmp_path / "a", manifest, {name: package(library)})
    says = "must end in .pt2, as all programs of this format"
    nothing_runs(tmp_path / "a", mark, says)
    if name == "begin.dat":
        nothing_runs_by_command(tmp_path / "a", mark, says)
    with pytest.raises(ArtefactError, match="must end in"):
        pack(tmp_path / "a", tmp_path / "a.sparvar")


@pytest.mark.aot
@needs_compiler
def test_a_program_runs_where_it_is_trusted(tmp_path: Path, mark: Path, library: bytes) -> None:
    """The plant works: with trust its constructor runs, without it does not, in a folder or in one file."""
    manifest = with_program("aoti", "begin.pt2")
    del manifest["formats"]["aoti"]["native"]
    write(tmp_path / "a", manifest, {"begin.pt2": package(library)})
    pack(tmp_path / "a", tmp_path / "a.sparvar")
    for place in (tmp_path / "a", tmp_path / "a.sparvar"):
        nothing_runs(place, mark, "--trust on the command line")
        if place.is_dir():
            nothing_runs_by_command(place, mark, "--trust on the command line")
        with pytest.raises(ArtefactError):  # the planted library is no program
            sparvar.load(place, format="aoti", trust=True)
        assert mark.exists()
        mark.unlink()


@needs_compiler
@pytest.mark.parametrize("name", ["native/kernels.dat", "kernels", "kernels.so.onnx"])
def test_a_library_under_another_name_does_not_run(tmp_path: Path, mark: Path, library: bytes, name: str) -> None:
    manifest = with_program("aoti", "aoti/begin.pt2")
    manifest["formats"]["aoti"]["native"] = ["native/kernels.so", name]
    write(tmp_path / "a", manifest, {name: library})
    nothing_runs(tmp_path / "a", mark, "formats.aoti.native[1]: must end in .so, .dll, .dylib")


@needs_compiler
@pytest.mark.parametrize("format", ["onnx", "tensorrt"])
def test_formats_without_libraries_name_none(tmp_path: Path, mark: Path, library: bytes, format: str) -> None:
    manifest = with_program(format, "begin" + FORMATS[format].ending)
    for name in ("block", "end"):
        manifest["formats"][format]["programs"][name]["file"] = name + FORMATS[format].ending
    manifest["formats"][format]["native"] = ["native/kernels.so"]
    contents = {name + FORMATS[format].ending: library for name in ("begin", "block", "end")}
    write(tmp_path / "a", manifest, {**contents, "native/kernels.so": library})
    nothing_runs(tmp_path / "a", mark, "native: must be left out: the format has no libraries", format)


@needs_compiler
def test_a_library_as_an_onnx_program_does_not_run(tmp_path: Path, mark: Path, library: bytes) -> None:
    """ONNX needs no trust: onnxruntime reads what it is given as a graph."""
    pytest.importorskip("onnxruntime")
    manifest = document()
    del manifest["formats"]["aoti"]
    write(tmp_path / "a", manifest, {"begin.onnx": library})
    nothing_runs(tmp_path / "a", mark, "must be an ONNX model that onnxruntime can load", "onnx")


def test_operators_of_other_domains_are_not_looked_for(tmp_path: Path, mark: Path) -> None:
    """A graph that asks for operators of a library, or for a compiled context, is refused."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from sparvar.artefact.engines.onnx import OnnxEngine

    value = onnx.helper.make_tensor_value_info
    for domain, op in (("other.library", "Act"), ("com.microsoft", "EPContext"), ("ai.onnx.contrib", "PyOp")):
        node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain, ep_cache_context="planted.so", embed_mode=0)
        graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
        opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(domain, 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(model, str(tmp_path / "x.onnx"))
        with pytest.raises(ArtefactError, match="must be an ONNX model that onnxruntime can load"):
            OnnxEngine("cpu", 1).program(tmp_path / "x.onnx", 1)


@pytest.mark.parametrize("format", FORMATS)
def test_trust_does_not_rest_on_the_name(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Even where the manifest's check lets a name pass, programs that hold native code need trust."""
    monkeypatch.setattr(consistency, "_check_programs", lambda *_: None)
    manifest = with_program(format, "begin.dat")
    manifest["formats"][format]["native"] = []
    for name in ("block", "end"):
        manifest["formats"][format]["programs"][name]["file"] = "begin.dat"
    write(tmp_path / "a", manifest, {"begin.dat": b"anything"})
    found, digest = read_manifest(tmp_path / "a")
    assert found.formats[format].native_files(format) == (("begin.dat",) if FORMATS[format].native else ())
    if FORMATS[format].native:
        with pytest.raises(ArtefactError, match=r"begin\.dat  sha256"):
            require_trust(found, digest, format, False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["formats"].update(other=m["formats"].pop("onnx")), "formats.other: must be one of aoti, onnx, te"),
        (lambda m: m["plan"].update(file="native/more.so"), 'files["native/more.so"]: must be named by a format'),
        (lambda m: m["golden"].update(file="native/more.so"), 'files["native/more.so"]: must be named by a format'),
    ],
)  # fmt: skip
def test_nothing_else_makes_code_of_a_file(change: Any, says: str) -> None:
    manifest = document()
    manifest["files"]["native/more.so"] = {"sha256": "0" * 64, "bytes": 1}
    change(manifest)
    with pytest.raises(ArtefactError) as caught:
        parse_manifest(json.dumps(manifest))
    assert says in str(caught.value)
