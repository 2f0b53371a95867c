"""Whole scales as one program each, without custom ops or mutation: what ONNX and TensorRT take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparvar.export.families import Family
from sparvar.export.programs import Generation, Recorded, Say, Step, builder_of
from sparvar.export.rewrite import BlockProgram, SiteMaker, block_program
from sparvar.export.sites import kind_of, local_constants
from sparvar.export.trace import Program, export_graph, weight_names
from sparvar.scale_plans import Plan


@dataclass
class Scales:
    """Programs ``begin``, ``scaleNN`` and ``decode``, whose weights are their own parameters, and their steps.

    Attributes:
        programs: by name; the parameters' names in an exported program are ``roots.ROOT.NAME``.
        inputs, outputs: value names of each program, as in the manifest.
        kinds: of each layer, by scale.
    """

    family: Family
    plan: Plan
    programs: dict[str, Program] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    image: Tensor | None = None


class _Whole(nn.Module):
    """A function of named tensors that uses a family's modules; inputs and outputs by position."""

    def __init__(
        self, roots: Mapping[str, nn.Module], names: list[str], function: Callable[[dict[str, Tensor], Any], Any]
    ) -> None:
        super().__init__()
        self.roots = nn.ModuleDict(dict(roots))
        self.names, self.function = names, function

    def weight(self, path: str) -> Tensor:
        """A parameter or buffer by its path below ``roots``: looked up at each use, because tracing replaces it."""
        found: Any = self.roots
        for part in path.split("."):
            found = found[part] if isinstance(found, nn.ModuleDict) else getattr(found, part)
        assert isinstance(found, Tensor)
        return found

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        out = self.function(dict(zip(self.names, tensors, strict=True)), self.weight)
        return tuple(out.values())
