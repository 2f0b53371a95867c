"""Reading and writing manifests: what is right comes back equal, what is wrong is named with its place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparvar.artefact.manifest.consistency import check_tensors
from sparvar.artefact.manifest.reading import parse_manifest, read_manifest
from sparvar.artefact.manifest.schema import Step, TensorSpec, content_digest
from sparvar.errors import ArtefactError
from tests.artefact.factory import artefact, document, tensor

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a document."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = list(places(document()))


def put(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = document()
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def complaint(changed: Any) -> str:
    with pytest.raises(ArtefactError) as caught:
        parse_manifest(json.dumps(changed))
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = artefact(tmp_path)
    assert read_manifest(tmp_path)[0] == manifest
    assert parse_manifest(manifest.dumps()) == manifest
    content = json.loads(manifest.dumps())
    assert content.pop("digest") == content_digest(content)
    assert content == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest.inputs[0].classes == ("sea", "mountain")
    assert manifest.inputs[1].default == 2.0
    assert manifest.golden.facts == {"seed": 7}
    assert manifest.formats["aoti"].programs["begin"].inputs == (
        TensorSpec("int64", (1,)),
        TensorSpec("float32", (4, 3)),
    )


def test_the_checksum_is_of_the_bytes(tmp_path: Path) -> None:
    artefact(tmp_path)
    assert read_manifest(tmp_path)[1] == hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()


def test_a_flipped_byte_is_found() -> None:
    manifest = parse_manifest(json.dumps(document()))
    text = manifest.dumps().encode()
    for position in range(0, len(text), 3):
        changed = bytearray(text)
        changed[position] ^= 1 << position % 7
        try:
            assert parse_manifest(changed) == manifest, position  # a space that became another
        except ArtefactError:
            continue
        assert text[position : position + 1].isspace(), position


def test_a_step_with_layers_runs_once_per_layer() -> None:
    step = Step("p", ("x", "weights/{layer}.w"), ("x",), (0, 12))
    assert list(step.runs()) == [(("x", "weights/0.w"), ("x",)), (("x", "weights/12.w"), ("x",))]
    assert list(Step("p", ("x",), ("y",)).runs()) == [(("x",), ("y",))]


def test_native_files_are_known() -> None:
    formats = parse_manifest(json.dumps(document())).formats
    assert set(formats["aoti"].native_files("aoti")) == {
        "aoti/begin.pt2", "aoti/block.pt2", "aoti/end.pt2", "native/kernels.so",
    }  # fmt: skip
    assert formats["onnx"].native_files("onnx") == ()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format",), "other", 'manifest.json: format: must be one of sparvar-artefact, got "other"'),
        (("schema",), 2, "schema: must be 1 for this sparvar, got 2; it was made by a newer sparvar: upgrade with"),
        (("schema",), True, "schema: must be an integer from 1, got true"),
        (("created",), "", 'created: must be text, got ""'),
        (("model", "dtype"), "float33", "model.dtype: must be one of bool, "),
        (("model", "licence"), None, "model.licence: must be text, got null"),
        (("model",), [], "manifest.json: model: must be an object, got a list of 0"),
        (("plan", "file"), "../plan.json", "plan.file: must be a relative path with forward slashes that stays inside"),
        (("plan", "file"), "plans.json", "plan.file: must be one of the manifest's files, got 'plans.json'"),
        (("schedule", 1), [2], "schedule[1]: must be a grid [h, w], got 1 numbers"),
        (("schedule", 1, 0), 0, "schedule[1][0]: must be an integer from 1, got 0"),
        (("schedule",), [], "schedule: must have at least one scale"),
        (("prefix",), -1, "prefix: must be an integer from 0, got -1"),
        (("layers",), 1.0, "layers: must be an integer from 1, got 1.0"),
        (("image",), [3, 2], "image: must be [channels, height, width], got 2 numbers"),
        (("inputs", 0, "name"), "la bels", "inputs[0].name: must be a plain name"),
        (("inputs", 1, "name"), "labels", "inputs: must have every name once, got 'labels' twice"),
        (("inputs", 0, "kind"), "word", "inputs[0].kind: must be one of class, number, tensor"),
        (("inputs", 0, "dtype"), "int32", "inputs[0].dtype: must be int64 for classes"),
        (("inputs", 0, "classes"), ["a", "a"], "inputs[0].classes: must name every class once"),
        (("inputs", 0, "default"), 1, "inputs[0].default: must be left out: only numbers have defaults"),
        (("inputs", 1, "default"), "2", 'inputs[1].default: must be a finite number, got "2"'),
        (("inputs", 1, "default"), 10**400, "inputs[1].default: must be a finite number"),
        (("inputs", 1, "classes"), ["a"], "inputs[1].classes: must be left out"),
        (("inputs", 1, "shape"), [1], "inputs[1].shape: must be [] for a number"),
        (("noise", 0, "name"), "noise/", "noise[0].name: must begin with 'noise/' and go on"),
        (("noise", 0, "dtype"), "float64", "noise[0].dtype: must be one of float32"),
        (("noise", 0, "distribution"), "cauchy", "noise[0].distribution: must be one of uniform, exponential, normal"),
        (("noise", 0, "per_image"), 1, "noise[0].per_image: must be true or false, got 1"),
        (("noise", 0, "shape"), [2, 2, 2], "noise[0].shape: must begin with the number of images, 1, got [2, 2, 2]"),
        (("noise", 0, "shape"), [1, -2], "noise[0].shape[1]: must be an integer from 0, got -2"),
        (("buffers", 0, "shape"), [2**40, 2**40], "buffers[0].shape: must be the shape of fewer than 2 ** 63 elements"),
        (("buffers", 0, "shape"), [1] * 65, "buffers[0].shape: must have at most 64 axes, got 65"),
        (("buffers", 0, "name"), "k", "buffers[0].name: must begin with 'buffers/'"),
        (("formats",), {}, "formats: must have at least one format"),
        (("formats", "aoti", "steps"), [], "formats.aoti.steps: must have at least one step"),
        (("formats", "aoti", "requires", "cpu"), 3, "formats.aoti.requires.cpu: must be a list, got 3"),
        (("formats", "aoti", "native", 0), "/lib/k.so", "formats.aoti.native[0]: must be a relative path"),
        (("formats", "aoti", "programs", "begin", "file"), "a\\b.pt2", "programs.begin.file: must be a relative path"),
        (("formats", "aoti", "programs", "begin", "file"), "a.pkl", "must be a data file or a program, got 'a.pkl'"),
        (("formats", "aoti", "programs", "begin", "file"), "a.pt2", "must be one of the manifest's files, got 'a.pt2'"),
        (("formats", "aoti", "programs", "begin", "scale"), 3, "begin.scale: must be one of the 2 scales, got 3"),
        (("formats", "aoti", "programs", "begin", "flops"), 1.5, "begin.flops: must be an integer from 0"),
        (("formats", "aoti", "programs", "begin", "inputs", 0), [1], "begin.inputs[0]: must be an object"),
        (("formats", "aoti", "steps", 0, "program"), "none", "steps[0].program: must be one of the format's programs"),
        (("formats", "aoti", "steps", 1, "layers"), [], "steps[1].layers: must name at least one layer, or be null"),
        (("formats", "aoti", "steps", 1, "layers"), [2], "steps[1].layers: must be layers from 0 to 1, got 2"),
        (("formats", "aoti", "steps", 1, "layers"), None, "steps[1].in[1]: must have no {layer} in a step without"),
        (("formats", "aoti", "steps", 0, "in"), ["inputs/labels"], "steps[0].in: must have as many values as program"),
        (("formats", "aoti", "steps", 0, "out"), [], "steps[0].out: must have as many values as program 'begin', 1"),
        (("formats", "aoti", "steps", 0, "in", 0), "inputs/cfg", "must be int64 [1] for its program, got 'inputs/cfg'"),
        (("formats", "aoti", "steps", 0, "in", 0), "labels", "in[0]: must be a value that there is"),
        (("formats", "aoti", "steps", 1, "in", 2), "buffers/v", "in[2]: must be a value that there is"),
        (("formats", "aoti", "steps", 2, "in", 2), "noise/2", "in[2]: must be a value that there is"),
        (("formats", "aoti", "steps", 0, "out", 0), "weights/x", "out[0]: must be a value that a step may put out"),
        (("formats", "aoti", "steps", 0, "out", 0), "buffers/k.0", "must be a declared buffer of float32 [2, 3]"),
        (("formats", "aoti", "steps", 2, "out", 0), "picture", "steps[2].out: must have 'image'"),
        (("images",), 2, "noise[0].shape: must begin with the number of images, 2"),
        (("image",), [3, 4, 4], "steps[2].out: must put out 'image' as float32 [1, 3, 4, 4], got float32 [1, 3, 2, 2]"),
        (("files", "a/../b"), {"sha256": "0" * 64, "bytes": 1}, 'files["a/../b"]: must be a relative path'),
        (("files", "c:x"), {"sha256": "0" * 64, "bytes": 1}, "with a drive or a colon"),
        (("files", "readme.MD"), {"sha256": "0" * 64, "bytes": 1}, "name every file once, up to case"),
        (("files", "manifest.json"), {"sha256": "0" * 64, "bytes": 1}, "and not the manifest"),
        (("files", "plan.json/x"), {"sha256": "0" * 64, "bytes": 1}, "'plan.json/x' beside 'plan.json'"),
        (("files", "more.so"), {"sha256": "0" * 64, "bytes": 1}, "must be named by a format: it is native code"),
        (("files", "more.py"), {"sha256": "0" * 64, "bytes": 1}, "artefacts hold no pickles and no Python code"),
        (("files", "plan.json", "sha256"), "A" * 64, 'files["plan.json"].sha256: must be 64 hexadecimal digits'),
        (("golden", "file"), "gold", "golden.file: must be one of the manifest's files"),
        (("golden",), {}, "golden: must have the key 'file', got only nothing"),
        (("memory", "weights"), "1 GB", "memory.weights: must be an integer from 0"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path: tuple[Any, ...], value: Any, says: str) -> None:
    assert says in complaint(put(path, value))


AOTI = ("formats", "aoti")
FREE = {
    ("inputs", 0, "classes"), ("inputs", 1, "default"), ("formats", "onnx"), ("golden", "seed"), ("memory", "weights"),
    ("files", "README.md"),
    *(("formats", name, "requires", key) for name in ("aoti", "onnx") for key in ("torch", "cpu")),
    *(("formats", name, "steps", step, "layers") for name in ("aoti", "onnx") for step in (0, 2)),
}  # fmt: skip
OTHERWISE = {AOTI: "native code", (*AOTI, "native"): "native code"}
"""What is said where it is not the missing key."""


@pytest.mark.parametrize("path", [path for path in PLACES if path and isinstance(path[-1], str)], ids=str)
def test_a_missing_key_is_named(path: tuple[Any, ...]) -> None:
    changed = document()
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    if path in FREE:
        parse_manifest(json.dumps(changed))
    elif len(path) > 1 and path[-1] == "layers":
        assert "{layer}" in complaint(changed)
    else:
        assert OTHERWISE.get(path, path[-1]) in complaint(changed)


@pytest.mark.parametrize("path", [path for path in PLACES if path[-1:] in [("model",), ("begin",), ("plan",)]], ids=str)
def test_an_unknown_key_is_named(path: tuple[Any, ...]) -> None:
    says = complaint(put((*path, "extra"), 1))
    assert "extra: must not be there: the keys here are" in says
    assert "manifest.json: novel: must not be there" in complaint(put(("novel",), 1))


def test_a_newer_schema_comes_before_its_other_fields() -> None:
    newer = {"format": "sparvar-artefact", "schema": 9, "novel": 1}
    assert "made by a newer sparvar: upgrade" in complaint(newer)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ('{"format": "a", "format": "b"}', "got the key 'format' twice in one object"),
        ('{"schema": NaN}', "got the number NaN"),
        ("[]", "manifest.json: must be an object, got a list of 0"),
        ("{}", "manifest.json: must have the key 'format'"),
        ('{"format": "sparvar-artefact"}', "must have the key 'schema'"),
        ('"\\ud800"', "must be an object"),
        ("1" * 5000, "must be"),
    ],
)
def test_no_manifest(text: str, says: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        parse_manifest(text)
    assert says in str(caught.value)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ArtefactError, match="must be JSON"):
        parse_manifest(b"\xff\xfe\x00")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"must be an artefact, got no readable manifest\.json there \(No such file"
    ):
        read_manifest(tmp_path)[0]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_manifest_that_is_a_link(tmp_path: Path) -> None:
    artefact(tmp_path / "real")
    (tmp_path / "manifest.json").symlink_to(tmp_path / "real" / "manifest.json")
    with pytest.raises(ArtefactError, match="must be a file, got a link"):
        read_manifest(tmp_path)[0]


def test_a_value_is_only_there_after_its_step() -> None:
    changed = document()
    steps = changed["formats"]["aoti"]["steps"]
    steps[0], steps[1] = steps[1], steps[0]
    assert "steps[0].in[0]: must be a value that there is" in complaint(changed)


def test_a_step_puts_a_value_out_once() -> None:
    changed = document()
    begin = changed["formats"]["aoti"]["programs"]["begin"]
    begin["outputs"].append(tensor(2, 3))
    changed["formats"]["aoti"]["steps"][0]["out"] = ["x", "x"]
    assert "steps[0].out: must have every name once, got 'x' twice" in complaint(changed)


def test_a_buffer_may_be_put_out() -> None:
    changed = document()
    changed["formats"]["aoti"]["programs"]["block"]["outputs"].append(tensor(2, 4, 3))
    changed["formats"]["aoti"]["steps"][1]["out"] = ["x", "buffers/k.{layer}"]
    parse_manifest(json.dumps(changed))


def test_values_of_files_need_their_file() -> None:
    changed = document()
    del changed["files"]["constants.safetensors"]
    assert "in[1]: must have its file constants.safetensors among" in complaint(changed)


def _drop(value: Any, data: st.DataObject) -> Any:
    """Take something out of a list or an object."""
    if isinstance(value, list) and value:
        del value[data.draw(st.integers(0, len(value) - 1))]
    elif isinstance(value, dict) and value:
        del value[data.draw(st.sampled_from(sorted(value)))]
    return value


@given(st.sampled_from(PLACES[1:]), JUNK, st.data())
def test_nothing_but_artefact_errors(path: tuple[Any, ...], junk: Any, data: st.DataObject) -> None:
    changes: list[Callable[[], Any]] = [lambda: put(path, junk), lambda: _drop(document(), data)]
    changed = data.draw(st.sampled_from(changes))()
    try:
        manifest = parse_manifest(json.dumps(changed))
    except ArtefactError as error:
        assert "must" in str(error)
    else:
        assert parse_manifest(manifest.dumps()) == manifest


def test_tensors_must_be_what_programs_take() -> None:
    manifest = parse_manifest(json.dumps(document()))
    specs = {f"weights/b.{layer}.w": TensorSpec("float32", (3, 3)) for layer in range(2)}
    specs |= {"weights/embed": TensorSpec("float32", (4, 3)), "constants/rope": TensorSpec("float32", (2,))}
    check_tensors(manifest, "aoti", specs)
    missing = {name: spec for name, spec in specs.items() if name != "weights/b.1.w"}
    with pytest.raises(ArtefactError, match=r"steps\[1\]\.in\[1\]: must be a tensor of weights\.safetensors"):
        check_tensors(manifest, "aoti", missing)
    with pytest.raises(ArtefactError, match=r"must be float32 \[2\] for its program, got 'constants/rope', which is f"):
        check_tensors(manifest, "onnx", specs | {"constants/rope": TensorSpec("float64", (2,))})
