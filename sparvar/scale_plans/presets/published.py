"""Plans of published models: the settings of SparVAR's paper, generalised to any schedule, not calibrated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sparvar.errors import PlanError, message
from sparvar.scale_plans.data import ModelInfo, Provenance
from sparvar.scale_plans.plan import Plan
from sparvar.scale_plans.presets.build import default_plan
from sparvar.scale_plans.presets.schedules import (
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
        signature: hex digits of the :func:`block_signature` of its parameters.
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
            ModelInfo(
                sites=self.sites,
                heads=self.width // self.head_dim,
                head_dim=self.head_dim,
                dtype=self.dtype,
                family=self.family,
            ),
            prefix=self.prefix,
            name=self.name if label is None else f"{self.name}:{label}",
        )
        return plan.replace(provenance=Provenance(note=NOTE))

    def plans(self) -> PlanSet:
        """The default schedule's plan; any other's by rule where the model's calls name it."""
        first = next(iter(self.schedules.values()))
        return PlanSet.of([self.plan(first)], rule=self.plan if self.named else None, name=self.name)


def block_signature(parameters: Iterable[tuple[str, Sequence[int]]]) -> str:
    """SHA-256, as hex digits, of names and shapes of the parameters in a model's blocks.

    Other parameters, types and module classes depend on how a checkpoint is loaded (text encoder, autocast, fused
    norms) and are left out; so are per-head scales, whose layout depends on the attention that is installed.
    """
    kept = sorted(
        [name, [int(size) for size in shape]]
        for name, shape in parameters
        if name.startswith(("blocks.", "block_chunks.")) and "scale_mul" not in name
    )
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _infinity(name: str, signature: str, depth: int, width: int, head_dim: int, chunk: int) -> Published:
    names = dict(sorted(infinity_schedules().items(), key=lambda item: item[0] != "1M/1"))
    return Published(
        name, "Infinity", signature, depth, width, head_dim, chunk, "bfloat16", schedules=names, named=True
    )


def _var(name: str, signature: str, depth: int, schedule: Schedule) -> Published:
    # FlexVAR has VAR's blocks, so that it is the same model here: its calls name their schedules, VAR's never do.
    side = 16 * schedule[-1][0]
    return Published(name, "VAR", signature, depth, 64 * depth, 64, schedules={str(side): schedule}, named=True)


MODELS = (
    _var("var-d16", "4c2cfc9a89d3948559e1de3523da8fa4f69fec9763727321f1ccd97ec124cbd8", 16, VAR_256),
    _var("var-d20", "fee77e1af93624e45ee506d124956594f9c3a0edc0e0766a06fcded917bb2243", 20, VAR_256),
    _var("var-d24", "5504d3bfbabf5b858960d4814ab492fa87813ed04038b7905f80df58bc46aff6", 24, VAR_256),
    _var("var-d30", "f3b89adb69b0a242da4f7eaf28b63aa564f122229e69bcf9cef89365edab18d7", 30, VAR_256),
    _var("var-d36", "c724134bbb2ea56eeb9cec4e82a20f8fd920a9525b00cfc52ad03299ba75b1fe", 36, VAR_512),
    _infinity("infinity-125m", "90d921130d1c389718b68875a40b7d4e8ad9e25c951bda9cf28b1dd5ee8c9530", 12, 768, 96, 3),
    _infinity("infinity-layer16", "2e6462ec8547a3b08c39327dbe2a1f0e086f87f9eccadcffe297ba3637dec896", 16, 1152, 96, 4),
    _infinity("infinity-layer24", "03b7397c17badff0779a99c78530633a4fa641188b3c2bf5aa3c43a0dad3617c", 24, 1536, 96, 6),
    _infinity("infinity-layer32", "76e3115541de688f526452f9eca2ff1a9e7042e66d9b92caa5c4402c960b0503", 32, 2080, 104, 8),
    _infinity(
        "infinity-layer40", "4d9d88328c6768b8927f82b203098f9e2c37addf8ded8db9b664b1c122b0a5dd", 40, 2688, 112, 10
    ),
    _infinity(
        "infinity-layer48", "76558d20cb09a8336fb82089464235babcf8b91ac3b0da6c08ed63fa5aff193b", 48, 3360, 120, 12
    ),
    _infinity("infinity-2b", "20227f4ebea706090e044e75e596c0970351e365b058ba1f2ac61f1b0e09a94b", 32, 2048, 128, 4),
    _infinity("infinity-8b", "cb64c5529bf7424e21719e9f1cfe49c6379f6ea5693645066c7614963c2dce8f", 40, 3584, 128, 5),
    Published(
        "hart-0.7b",
        "HART",
        "68d5865e543acab330386622fb2395c79059705eb3374afe2d080045c3c84c8a",
        24,
        1536,
        64,
        dtype="float16",
        prefix=HART_TEXT_TOKENS,
        schedules={"1024": HART_1024},
    ),
)


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
