"""A small artefact whose programs are bytes that nobody runs: two scales, two layers, two formats."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from sparvar.artefact.manifest.reading import parse_manifest
from sparvar.artefact.manifest.schema import Manifest


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


PACKAGE = archive({"model/data/aotinductor/model/code.wrapper.so": b"\x7fELF" + bytes(60), "model/version": b"1"})
WEIGHTS = save({"embed": np.ones((4, 3), np.float32), "b.0.w": np.zeros((3, 3), np.float32),
                "b.1.w": np.full((3, 3), 2, np.float32)})  # fmt: skip
CONTENTS: dict[str, bytes] = {
    "README.md": b"# What this is\n",
    "plan.json": b'{"name": "plan"}\n',
    "weights.safetensors": WEIGHTS,
    "constants.safetensors": save({"rope": np.zeros((2,), np.float32)}),
    "golden.safetensors": save({"image": np.zeros((1, 3, 2, 2), np.float32)}),
    "aoti/begin.pt2": PACKAGE,
    "aoti/block.pt2": PACKAGE + b"",
    "aoti/end.pt2": PACKAGE,
    "native/kernels.so": b"\x7fELF" + bytes(100),
    "begin.onnx": b"\x08\x0a" + bytes(20),
    "block.onnx": b"\x08\x0a" + bytes(30),
    "end.onnx": b"\x08\x0a" + bytes(10),
}


def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


def _program(file: str, scale: int | None, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    return {
        "file": file, "scale": scale, "kind": "dense", "inputs": inputs, "outputs": outputs,
        "flops": 100, "dense_flops": 200, "workspace": 64,
    }  # fmt: skip


def _format(folder: str, ending: str) -> dict[str, Any]:
    programs = {
        "begin": _program(f"{folder}begin{ending}", None, [tensor(1, dtype="int64"), tensor(4, 3)], [tensor(2, 3)]),
        "block": _program(f"{folder}block{ending}", 1, [tensor(2, 3), tensor(3, 3), tensor(2, 4, 3)], [tensor(2, 3)]),
        "end": _program(
            f"{folder}end{ending}", 2, [tensor(2, 3), tensor(2), tensor(1, 2, 2), tensor(dtype="float64")],
            [tensor(1, 3, 2, 2)],
        ),
    }  # fmt: skip
    steps = [
        {"program": "begin", "in": ["inputs/labels", "weights/embed"], "out": ["x"], "layers": None},
        {"program": "block", "in": ["x", "weights/b.{layer}.w", "buffers/k.{layer}"], "out": ["x"], "layers": [0, 1]},
        {"program": "end", "in": ["x", "constants/rope", "noise/1", "inputs/cfg"], "out": ["image"], "layers": None},
    ]
    return {"device": "cpu", "requires": {"torch": "2.13.0", "cpu": ["avx2"]}, "programs": programs, "steps": steps}


def files_json(contents: Mapping[str, bytes]) -> dict[str, Any]:
    return {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()}


JSON: dict[str, Any] = {
    "format": "sparvar-artefact",
    "schema": 1,
    "created": "2026-01-01T00:00:00Z",
    "tool": "sparvar 0",
    "model": {"name": "small", "family": "f", "fingerprint": "sha256:00", "dtype": "float32", "licence": "CC0"},
    "plan": {"file": "plan.json", "name": "plan", "digest": "sha256:11"},
    "schedule": [[1, 1], [2, 2]],
    "prefix": 0,
    "layers": 2,
    "images": 1,
    "image": [3, 2, 2],
    "inputs": [
        {"name": "labels", "kind": "class", "shape": [1], "dtype": "int64", "classes": ["sea", "mountain"]},
        {"name": "cfg", "kind": "number", "shape": [], "dtype": "float64", "default": 2.0},
    ],
    "noise": [
        {"name": "noise/1", "shape": [1, 2, 2], "dtype": "float32", "distribution": "uniform", "per_image": True}
    ],
    "buffers": [{"name": f"buffers/k.{layer}", "shape": [2, 4, 3], "dtype": "float32"} for layer in range(2)],
    "formats": {"aoti": _format("aoti/", ".pt2") | {"native": ["native/kernels.so"]}, "onnx": _format("", ".onnx")},
    "files": files_json(CONTENTS),
    "golden": {"file": "golden.safetensors", "seed": 7},
    "memory": {"weights": 120},
}  # fmt: skip


def document() -> dict[str, Any]:
    """The manifest's JSON, to be changed freely."""
    return copy.deepcopy(JSON)


def artefact(folder: Path, contents: Mapping[str, bytes] | None = None) -> Manifest:
    """Write the artefact, or one with other files beside or instead of its own."""
    contents = CONTENTS | dict(contents or {})
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    text = json.dumps(document() | {"files": files_json(contents)})
    (folder / "manifest.json").write_text(text)
    return parse_manifest(text)
