"""Safetensors files read without their package: equal to what the package reads, and safe where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparvar.artefact.manifest.schema import TensorSpec
from sparvar.artefact.tensors import NAMES, TensorFile
from sparvar.errors import ArtefactError

NO_NUMPY = ("bfloat16", "float8_e5m2", "float8_e4m3fn")


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_dtype_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {name: torch.randint(0, 2, (3, 4, 2)).to(getattr(torch, name)) for name in NAMES.values()} | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(3, 0),
        "none": torch.empty(0),
    }
    save_file(tensors, path, {"key": "value", "nothing": ""})
    file, expected = TensorFile(path), load_file(path)
    assert set(file.names) == set(tensors)
    assert file.metadata == {"key": "value", "nothing": ""}
    data = path.read_bytes()
    for name, tensor in expected.items():
        mapped = file.torch(name)
        assert file.spec(name) == TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert mapped.dtype == tensor.dtype
        assert mapped.shape == tensor.shape
        assert mapped.is_contiguous()
        assert torch.equal(mapped.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        offset, length = file.span(name)
        assert data[offset : offset + length] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        if name not in NO_NUMPY:
            array = file.numpy(name)
            assert array.shape == tensor.shape
            np.testing.assert_array_equal(array, tensor.numpy())
            assert not array.flags.writeable or not array.size


@pytest.mark.parametrize("dtype", NO_NUMPY)
def test_what_numpy_does_not_have(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(2).to(getattr(torch, dtype))}, path)
    with pytest.raises(ArtefactError, match=f"'w': must have a dtype of NumPy, got {dtype}; read it with torch"):
        TensorFile(path).numpy("w")


def test_tensors_share_one_mapping_and_writes_stay_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, path)
    before = path.read_bytes()
    file = TensorFile(path)
    a, b = file.torch("a"), file.torch("b")
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    assert a.untyped_storage().nbytes() == len(before)
    a.fill_(7)
    assert torch.equal(file.torch("a"), torch.full((4,), 7.0))
    assert path.read_bytes() == before
    assert torch.equal(TensorFile(path).torch("a"), torch.arange(4.0))
    assert isinstance(file.numpy("a"), np.memmap)


def test_an_unknown_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"t{index}": torch.zeros(1) for index in range(7)}, path)
    file = TensorFile(path)
    for read in (file.spec, file.span, file.torch, file.numpy):
        with pytest.raises(ArtefactError, match=r"must have a tensor 'x', got only t0, t1, t2, t3, t4, \.\.\."):
            read("x")


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", b"", "header: must be JSON"),
        (b"[]", b"", "header: must be an object"),
        (b'{"a": 1, "a": 2}', b"", "got the key 'a' twice"),
        (b"\xff", b"", "header: must be JSON"),
        (b"[" * 100_000, b"", "header: must be JSON"),
        ({"a": one()}, bytes(7), "must have 80 bytes, as its header says, got 79"),
        ({"a": one()}, bytes(9), "as its header says"),
        ({"a": one(offsets=[0, 9])}, bytes(9), "a.data_offsets: must span the 8 bytes of float32 [2], got 9"),
        ({"a": one(offsets=[8, 0])}, bytes(8), "must span the 8 bytes"),
        ({"a": one(offsets=[-8, 0])}, bytes(8), "a.data_offsets[0]: must be an integer from 0, got -8"),
        ({"a": one(offsets=[0])}, bytes(8), "a.data_offsets: must be [begin, end], got 1 numbers"),
        ({"a": one(offsets=[0, 2**70])}, bytes(8), "a.data_offsets[1]: must be an integer from 0"),
        ({"a": one(shape=[2**62, 2])}, bytes(8), "a.shape: must be the shape of fewer than 2 ** 63 elements"),
        ({"a": one(shape=[-2])}, bytes(8), "a.shape[0]: must be an integer from 0"),
        ({"a": one(shape=2)}, bytes(8), "a.shape: must be a list, got 2"),
        ({"a": one(dtype="F33")}, bytes(8), "a.dtype: must be one of BOOL, U8"),
        ({"a": one() | {"more": 1}}, bytes(8), "a.more: must not be there"),
        ({"a": {"dtype": "F32"}}, bytes(8), "a: must have the key 'shape'"),
        ({"a": one(), "b": one()}, bytes(8), "'b': must follow the tensor before it, got one that begins into 'a'"),
        ({"a": one(), "b": one(offsets=[4, 12])}, bytes(12), "begins into 'a' (byte"),
        ({"a": one(), "b": one(offsets=[12, 20])}, bytes(20), "got one that begins after a gap behind 'a'"),
        ({"a": one(offsets=[8, 16])}, bytes(16), "begins after a gap behind the header"),
        ({"a": one("U8", [1], [0, 1]), "b": one(offsets=[1, 9])}, bytes(9), "must begin at a multiple of 4 bytes"),
        ({"__metadata__": {"a": 1}, "a": one()}, bytes(8), "__metadata__.a: must be text, got 1"),
        ({"__metadata__": [], "a": one()}, bytes(8), "__metadata__: must be an object"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_named(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    assert says in refused(written(tmp_path / "bad.safetensors", header, data))


@pytest.mark.parametrize("keep", [0, 7, 8, 20])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = written(tmp_path / "bad.safetensors", {"a": one()}, bytes(8))
    path.write_bytes(path.read_bytes()[:keep])
    assert "must begin with the length of its header" in refused(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 100_000_001, 73])
def test_a_length_that_cannot_be(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "bad.safetensors", {"a": one()}, b"", length)
    assert f"must begin with the length of its header, got {length} in a file of" in refused(path)


def test_no_file(tmp_path: Path) -> None:
    assert "must be readable, got No such file" in refused(tmp_path / "none")
    assert "must be readable, got Is a directory" in refused(tmp_path)


@given(st.data())
def test_damage_gives_an_error_or_tensors_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))])
    try:
        file = TensorFile(path)
    except ArtefactError:
        return
    for name in file.names:
        offset, length = file.span(name)
        assert 8 <= offset <= offset + length <= len(content)
        tensor = file.torch(name)
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == bytes(content[offset : offset + length])
