"""Trace a family's functions into programs whose weights are inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.func import functional_call

from sparvar.models import Family


@dataclass
class Program:
    """One program of an artefact.

    Attributes:
        name: of the file.
        scale: that it belongs to, 0 for none.
        kind: ``begin``, ``leave``, ``decode``, or a kind of block.
        exported: what the formats compile; weights and constants are inputs.
        inputs, outputs: value names, see `sparvar.artefact`; in a program of blocks ``{layer}`` stands for the layer.
        flops, dense_flops: multiplications and additions of one run, and what they were if all attention were dense.
    """

    name: str
    scale: int
    kind: str
    exported: ExportedProgram
    inputs: list[str]
    outputs: list[str]
    flops: int = 0
    dense_flops: int = 0


class _Piece(nn.Module):
    """A function of tensors that uses a family's modules."""

    def __init__(self, roots: Mapping[str, nn.Module], function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.roots = nn.ModuleDict(dict(roots))
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


class _Functional(nn.Module):
    """A piece whose weights are its last arguments."""

    def __init__(self, piece: _Piece, names: list[str]) -> None:
        super().__init__()
        # Not a submodule: its weights must not be found and lifted.
        self.__dict__["piece"] = piece
        self.names = names

    def forward(self, *tensors: Tensor) -> Any:
        count = len(tensors) - len(self.names)
        piece: nn.Module = self.__dict__["piece"]
        return functional_call(piece, dict(zip(self.names, tensors[count:], strict=True)), tensors[:count])


def weight_names(family: Family) -> dict[int, str]:
    """Names of all parameters and buffers of a family's modules, by ``id``; the root's name leads where there are
    several."""
    several = len(family.roots) > 1
    return {
        id(tensor): f"{root}.{name}" if several else name
        for root, module in family.roots.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def export_graph(module: nn.Module, examples: Iterable[Tensor]) -> ExportedProgram:
    """``torch.export`` of a module for tensors of the examples' shapes."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own pytree
        return torch.export.export(module, tuple(examples), strict=False)


@dataclass(frozen=True)
class Traced:
    """A function of named tensors as a program.

    Attributes:
        exported: takes the ``inputs``, then the ``weights``.
        inputs: names of the values that the function uses.
        weights: those that it uses, by name.
        outputs: examples of what it gives, by name.
    """

    exported: ExportedProgram
    inputs: list[str]
    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]


Function = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Named tensors to named tensors, with a family's modules."""


def _piece(family: Family, function: Function, names: Sequence[str], fixed: Mapping[str, Tensor]) -> _Piece:
    """The function as a module that takes the values ``names`` by position; ``fixed`` are constants."""

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(function({**fixed, **dict(zip(names, tensors, strict=True))}).values())

    return _Piece(family.roots, flat)


def export_function(family: Family, function: Function, given: Mapping[str, Tensor]) -> ExportedProgram:
    """``torch.export`` of a function of the tensors ``given``; weights are the program's parameters."""
    return export_graph(_piece(family, function, list(given), {}), given.values())


def trace(family: Family, function: Function, given: Mapping[str, Tensor]) -> Traced:
    """The function as a program that takes what it uses of ``given``, and its weights, as inputs."""
    first = export_function(family, function, given)
    used, kept = [], []
    users = {node.name: bool(node.users) for node in first.graph.nodes if node.op == "placeholder"}
    positions = iter(given)
    for spec in first.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            name = next(positions)
            if users[spec.arg.name]:
                kept.append(name)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and users[spec.arg.name]:
            assert spec.target is not None
            used.append(spec.target)
    piece = _piece(family, function, kept, {name: tensor for name, tensor in given.items() if name not in kept})
    tensors = {
        **dict(piece.named_parameters(remove_duplicate=False)),
        **dict(piece.named_buffers(remove_duplicate=False)),
    }
    known = weight_names(family)
    weights = {known[id(tensors[name])]: tensors[name] for name in used}
    examples = [*(given[name] for name in kept), *weights.values()]
    exported = export_graph(_Functional(piece, used), examples)
    with torch.no_grad():
        return Traced(exported, kept, weights, dict(function(dict(given))))
