"""Which ops of a program TensorRT takes, known without its libraries: from the converters of torch-tensorrt 2.13.

`tensorrt_converters.txt` holds the names of the ATen ops that have a converter there. Programs are lowered to them
here, with torch's own decompositions and two of ours, so that what is counted is what is handed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from sparvar.compiler.torch_compat import ASSERT_METADATA

CONVERTERS = "tensorrt_converters.txt"
REMOVED = (ASSERT_METADATA, "<built-in function getitem>")
"""What torch-tensorrt takes out of a graph itself: asserts, and the picking of one of several results."""
MOST_TOP = 3840
"""The largest K of TensorRT's top-k layer, see its operators' documentation."""


@dataclass(frozen=True)
class Coverage:
    """Ops of every program, and those that TensorRT does not take.

    Attributes:
        ops: by program, how often each op occurs.
        refused: by program, what does not go and why.
    """

    ops: Mapping[str, Mapping[str, int]]
    refused: Mapping[str, Mapping[str, int]]

    @property
    def ok(self) -> bool:
        """Whether every program can become one engine."""
        return not any(self.refused.values())

    def __str__(self) -> str:
        lines = [f"{'program':12} {'ops':>6} {'refused':>8}"]
        for name, ops in self.ops.items():
            refused = self.refused[name]
            what = "  " + ", ".join(f"{count} {op}" for op, count in refused.items()) if refused else ""
            lines.append(f"{name:12} {sum(ops.values()):6} {sum(refused.values()):8}{what}")
        kinds = {op for ops in self.ops.values() for op in ops}
        verdict = "every op has a converter" if self.ok else "not every op has a converter"
        lines += ["", f"{len(kinds)} kinds of op; {verdict} in torch-tensorrt 2.13"]
        return "\n".join(lines)


@cache
def converters() -> frozenset[str]:
    """Names of the ops that have a converter, such as ``aten.add.Tensor``."""
    text = files("sparvar.export.formats").joinpath(CONVERTERS).read_text(encoding="utf-8")
    return frozenset(text.split())


def lowered(exported: ExportedProgram) -> ExportedProgram:
    """The program with every op that has no converter taken apart, where a decomposition is known."""
    aten = torch.ops.aten
    have = converters()
    table: dict[Any, Any] = {
        op: function for op, function in torch.export.default_decompositions().items() if str(op) not in have
    }
    table[aten.linalg_vector_norm.default] = _vector_norm
    table[aten.full_like.default] = _full_like
    return exported.run_decompositions(table)


def covered(programs: Mapping[str, ExportedProgram]) -> Coverage:
    """Coverage of programs that `lowered` made."""
    ops: dict[str, dict[str, int]] = {}
    refused: dict[str, dict[str, int]] = {}
    for name, program in programs.items():
        nodes = [node for node in program.graph.nodes if node.op == "call_function" and str(node.target) not in REMOVED]
        ops[name] = dict(Counter(str(node.target) for node in nodes))
        found = Counter(reason for node in nodes if (reason := _refusal(node)))
        doubles = sum(_is_double(node) for node in program.graph.nodes)
        refused[name] = dict(found) | ({"values in float64": doubles} if doubles else {})
    return Coverage(ops, refused)


def _refusal(node: fx.Node) -> str:
    name = str(node.target)
    if name not in converters():
        return name
    if name == "aten.topk.default" and isinstance(node.args[1], int) and node.args[1] > MOST_TOP:
        return f"{name} of more than {MOST_TOP}"
    return ""


def _is_double(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    if ord != 2:
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    axes = list(range(x.ndim)) if dim is None else dim
    return torch.sqrt(torch.sum(x * x, axes, keepdim=keepdim))


def _full_like(
    x: Tensor, value: float, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: object
) -> Tensor:
    return torch.full(x.shape, value, dtype=dtype or x.dtype, device=device or x.device)
