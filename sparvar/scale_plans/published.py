"""Plans of published models: the settings of SparVAR's paper, generalised to any schedule, not calibrated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sparvar.errors import PlanError, message
from sparvar.scale_plans.build import default_plan
from sparvar.scale_plans.data import Provenance
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.schedules import (
    HART_1024,
    HART_TEXT_TOKENS,
    VAR_256,
    VAR_512,
    infinity_schedules,
)
from sparvar.scale_plans.sets import PlanSet, Schedule

NOTE = "from the papers, uncalibrated: measure it before you trust it"


@dataclass(frozen=True)
class Published:
    """A model as its authors published it.

    Attributes:
        name: name of the plan.
        family: model family.
        signature: :func:`block_signature` of its parameters.
        depth: number of self-attentions.
        width: channels; heads are ``width // head_dim``.
        head_dim: channels of a head.
        chunk: Infinity's blocks per chunk, 0 where blocks are in one list.
        dtype: type in which the checkpoint computes attention.
        prefix: text tokens kept in the self-attention cache.
        schedules: by name, the default first.
        named: the model's calls name their schedule, so that any may come.
    """

    name: str
    family: str
    signature: str
    depth: int
    width: int
    head_dim: int
    chunk: int = 0
    dtype: str = "float32"
    prefix: int = 0
    schedules: dict[str, Schedule] = field(default_factory=dict, hash=False)
    named: bool = False

    @property
    def sites(self) -> list[str]:
        """Names of the self-attention modules, in order of execution."""
        if self.chunk:
            return [f"block_chunks.{i // self.chunk}.module.{i % self.chunk}.sa" for i in range(self.depth)]
        return [f"blocks.{i}.attn" for i in range(self.depth)]

    def plan(self, schedule: Schedule) -> Plan:
        """The plan of a schedule: decision at the third last scale, 20 % of keys, cs4a and csla layers 60 to 40."""
        label = next((name for name, grids in self.schedules.items() if grids == schedule), None)
        plan = default_plan(
            schedule,
            self.sites,
            heads=self.width // self.head_dim,
            head_dim=self.head_dim,
            dtype=self.dtype,
            family=self.family,
            prefix=self.prefix,
            name=self.name if label is None else f"{self.name}:{label}",
        )
        return plan.replace(provenance=Provenance(note=NOTE))

    def plans(self) -> PlanSet:
        """The default schedule's plan; any other's by rule where the model's calls name it."""
        first = next(iter(self.schedules.values()))
        return PlanSet.of([self.plan(first)], rule=self.plan if self.named else None, name=self.name)


def block_signature(parameters: Iterable[tuple[str, Sequence[int]]]) -> str:
    """``sha256:`` of names and shapes of the parameters in a model's blocks.

    Other parameters, types and module classes depend on how a checkpoint is loaded (text encoder, autocast, fused
    norms) and are left out; so are per-head scales, whose layout depends on the attention that is installed.
    """
    kept = sorted(
        [name, [int(size) for size in shape]]
        for name, shape in parameters
        if name.startswith(("blocks.", "block_chunks.")) and "scale_mul" not in name
    )
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def published_models() -> dict[str, Published]:
    """Every published model that sparvar knows, by name."""
    return {model.name: model for model in MODELS}


def find_published(parameters: Iterable[tuple[str, Sequence[int]]]) -> PlanSet | None:
    """The plans of the published model with these parameters (name, shape), or None."""
    signature = block_signature(parameters)
    return next((model.plans() for model in MODELS if model.signature == signature), None)


def published_plan(name: str) -> Plan | None:
    """The plan ``model`` or ``model:schedule`` (``infinity-2b:1M/1.5``), or None where no model has that name.

    Raises:
        PlanError: the model has no schedule of that name.
    """
    stem, _, label = name.partition(":")
    model = published_models().get(stem)
    if model is None:
        return None
    if not label:
        label = next(iter(model.schedules))
    if label not in model.schedules:
        raise PlanError(message("schedule", f"be one of {', '.join(model.schedules)}", label), name)
    return model.plan(model.schedules[label])
