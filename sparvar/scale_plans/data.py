"""The fields of a plan and the counts that follow from them.

Scales are numbered 1..K, layers from 0 (position in ``model.sites``, as in ``blocks.0``). Types are enforced here;
whether the values agree with each other is the business of `check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from sparvar.errors import PlanError, message
from sparvar.scale_plans.adapt import Adapt
from sparvar.scale_plans.kv_cache import WHOLE, KVCompression
from sparvar.scale_plans.records import FrozenDict, Record, by_name, by_scale
from sparvar.scale_plans.reductions import Guidance, PrunedSpan, Pruning, Skip

SCHEMA_VERSION = 1
POLICIES = ("dense", "cs4a", "csla")
INDEX_MAPS = ("identity", "relative", "footprint")

CALIBRATED_THRESHOLDS = ("start", "representative", "scores", "min_keep")
"""Fields of `Thresholds` that are given together, with all the others, or not at all."""

Kind = Literal["dense", "decide", "sparse", "pruned", "score"]
OPTIONAL_FIELDS = ("pruning", "guidance", "skip", "adapt", "kv")
"""Fields that are not written where they are not set, so that plans without them keep their bytes and digests."""


class ModelInfo(Record):
    """The model a plan was made for. Weights' values are no part of it."""

    fingerprint: str = ""
    """``sha256:`` and 64 hex digits, see `model_fingerprint`; empty where it is not stated."""
    sites: tuple[str, ...]
    """Module names of the self-attentions, in order of execution."""
    heads: int
    head_dim: int
    dtype: str = "float32"
    family: str = ""


class CS4AScale(Record):
    """What cs4a layers do at one scale after the decision scale."""

    budget: float
    """Share of this scale's keys that the mapped columns keep, in (0, 1]; sinks and window come on top."""
    window: int = 0
    """Odd side of the window around the tile's queries at this scale; 0 for none."""


class CSLAScale(Record):
    """What csla layers do at one scale."""

    windows: Annotated[Mapping[int, int], AfterValidator(by_scale)] = Field(default_factory=FrozenDict)
    """Historical scale (the scale itself included) -> odd side of the window there."""


class Thresholds(Record):
    """Parameters of entropy-guided pruning (ToProVAR, section 4), and what calibration found with them.

    ``sparvar.scale_plans.thresholds`` says what they mean, and
    ``sparvar.scale_plans.presets.methods.toprovar`` makes pruned spans of them.
    """

    tau: float | None = None
    """Scale depth: pruning may start at the first scale whose share of low-entropy queries reaches it."""
    beta: float | None = None
    """Layer score R = exp(-beta * (ratio - 1)), with ratio that of the two largest singular values."""
    alpha_min: float | None = None
    alpha_max: float | None = None
    """Pruned share of tokens: alpha_min + (alpha_max - alpha_min) * q."""
    start: int | None = None
    """D: the first scale that prunes, as calibrated with tau; null for none."""
    representative: int | None = None
    """The scale whose entropy maps give the layers' scores."""
    scores: tuple[float, ...] = ()
    """R of each layer, 0 where a layer is kept because it is global or ambiguous; empty for none."""
    min_keep: float | None = None
    """Least share of tokens that a (layer, scale) keeps."""

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans written before these fields existed keep their bytes and their digest.
        fields: dict[str, Any] = dump(self)
        for name in CALIBRATED_THRESHOLDS:
            if getattr(self, name) == type(self).model_fields[name].default:
                fields.pop(name, None)
        return fields


class Provenance(Record):
    """Where a plan comes from. It changes nothing in the computation and is outside the digest."""

    calibrated: bool = False
    created: str = ""
    tool: str = ""
    torch: str = ""
    device: str = ""
    note: str = ""
    details: Annotated[Mapping[str, str], AfterValidator(by_name)] = Field(default_factory=FrozenDict)


class PlanFields(Record):
    """Every field of a plan, in the order of the file, and the counts that follow from them."""

    schema_version: int = SCHEMA_VERSION
    name: str
    model: ModelInfo
    schedule: tuple[tuple[int, int], ...]
    """(h, w) of every scale."""
    prefix: int = 0
    """Tokens in the KV cache before scale 1."""
    tile: tuple[int, int] = (8, 16)
    """(h, w) of a query tile."""
    sink_scales: int
    """Sinks are the prefix and all tokens of scales 1..sink_scales."""
    decision_scale: int | None = None
    """The scale at which cs4a layers choose their columns; null where no layer is cs4a."""
    index_map: Literal["identity", "relative", "footprint"] = "relative"
    """How columns of the decision scale become columns of a later one."""
    output_correction: bool = False
    """Whether dense minus sparse output of the decision scale is added at later scales."""
    column_sum_stride: int = 1
    """Every how many queries of a tile, in both axes, the column sums look at."""
    layers: tuple[str, ...]
    """Policy of each site."""
    cs4a: Annotated[Mapping[int, CS4AScale], AfterValidator(by_scale)] = Field(default_factory=FrozenDict)
    csla: Annotated[Mapping[int, CSLAScale], AfterValidator(by_scale)] = Field(default_factory=FrozenDict)
    pruning: Pruning | None = None
    guidance: Guidance | None = None
    skip: Skip | None = None
    adapt: Adapt | None = None
    kv: KVCompression | None = None
    thresholds: Thresholds = Thresholds()
    measured: Annotated[Mapping[str, float], AfterValidator(by_name)] = Field(default_factory=FrozenDict)
    provenance: Provenance = Provenance()

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if name not in OPTIONAL_FIELDS or value is not None}

    @property
    def scales(self) -> int:
        """Number of scales, K."""
        return len(self.schedule)

    def grid(self, scale: int) -> tuple[int, int]:
        """(h, w) of a scale. Raises `PlanError` where the plan has no such scale."""
        if not 1 <= scale <= len(self.schedule):
            raise PlanError(message("scale", f"be between 1 and {len(self.schedule)}", scale), self.name)
        return self.schedule[scale - 1]

    def label(self, scale: int) -> str:
        """``scale 11 (40x40)``, or ``scale 99`` where there is no such scale."""
        if not 1 <= scale <= len(self.schedule):
            return f"scale {scale}"
        height, width = self.schedule[scale - 1]
        return f"scale {scale} ({height}x{width})"

    def tokens(self, scale: int) -> int:
        """N_k: tokens of a scale."""
        height, width = self.grid(scale)
        return height * width

    def offset(self, scale: int) -> int:
        """Position of a scale's first token among the keys: prefix and all tokens before it."""
        self.grid(scale)
        return self.prefix + sum(height * width for height, width in self.schedule[: scale - 1])

    def keys(self, scale: int) -> int:
        """T: keys that the queries of a scale attend to, P + C_k."""
        return self.offset(scale) + self.tokens(scale)

    @property
    def sinks(self) -> int:
        """Tokens of the sink span: the prefix and scales 1..sink_scales."""
        return self.prefix + sum(height * width for height, width in self.schedule[: self.sink_scales])

    def sinks_at(self, scale: int) -> int:
        """Sinks among the keys of a scale."""
        return min(self.sinks, self.keys(scale))

    def span(self, scale: int, layer: int) -> PrunedSpan | None:
        """The span that runs a layer (from 0) on a part of a scale's tokens, or None."""
        for span in self.pruning.spans if self.pruning is not None else ():
            if span.first <= layer <= span.last and self.kept_tokens(scale, span) < self.tokens(scale):
                return span
        return None

    def kept_tokens(self, scale: int, span: PrunedSpan) -> int:
        """Tokens of a scale that a span computes: round(share * N_k), at least 1."""
        return max(1, round(span.keep.get(scale, 1.0) * self.tokens(scale)))

    def conditional(self, scale: int) -> bool:
        """Whether a scale computes the conditional rows alone."""
        return self.guidance is not None and scale >= self.guidance.conditional_from

    @property
    def drawn(self) -> int:
        """Scales that are drawn: all but the skipped last ones."""
        return len(self.schedule) - (self.skip.last if self.skip is not None else 0)

    @property
    def reduces(self) -> bool:
        """Whether blocks may run on a part of their tokens or rows."""
        return self.pruning is not None or self.guidance is not None or self.adapt is not None

    @property
    def shortens(self) -> bool:
        """Whether a generation may end before the last scale, which a model's own loop does not do."""
        return self.skip is not None or self.adapt is not None

    def kind(self, scale: int, layer: int) -> Kind:
        """What runs at a scale (from 1) and layer (from 0): dense, decide or sparse attention, or attention of the
        kept tokens alone."""
        self.grid(scale)
        if not 0 <= layer < len(self.layers):
            raise PlanError(message("layer", f"be between 0 and {len(self.layers) - 1}", layer), self.name)
        if self.lacks_keys(scale, layer):
            return "pruned"
        kind = self.attention_kind(scale, layer)
        if kind == "dense" and self.measures_entropy(scale, layer):
            return "decide"
        return "score" if kind == "dense" and self.scores_keys(scale, layer) else kind

    def scores_keys(self, scale: int, layer: int) -> bool:
        """Whether a layer's queries say at a scale which keys stay in its cache."""
        if self.kv is None or self.kv.method == "local" or scale >= self.drawn:
            return False
        return self.drops_keys(scale, layer)

    def drops_keys(self, scale: int, layer: int) -> bool:
        """Whether a layer's cache is smaller once a scale has run than while it runs."""
        return self.kv is not None and self.held(scale, layer) < self.present(scale, layer)

    def compacts(self, scale: int, layer: int) -> bool:
        """Whether a layer's cache becomes a compact copy once a scale has run: keys go, or get a smaller type."""
        if self.kv is None:
            return False
        narrows = self.kv.store != "same" and scale in self.kv.keep and self.kv.kinds[layer] != (WHOLE,)
        return narrows or self.drops_keys(scale, layer)

    def held(self, scale: int, layer: int) -> int:
        """Keys per head in a layer's cache once a scale (from 0, the prefix alone) has run."""
        if self.kv is None or scale == 0:
            return self.keys(scale) if scale else self.prefix
        if scale >= self.drawn and self.kv.kinds[layer] != (WHOLE,):
            return 0
        count = self.kv.count(scale, layer)
        present = self.present(scale, layer)
        return present if count is None else min(count, present)

    def present(self, scale: int, layer: int) -> int:
        """Keys per head that a layer's queries of a scale attend to: those held before, and the scale's own."""
        return self.held(scale - 1, layer) + self.tokens(scale)

    def room(self, scale: int, layer: int) -> int:
        """Keys per head that a layer's cache must hold from a scale on, until it is made smaller or the image ends."""
        for each in range(scale, self.drawn):
            if self.compacts(each, layer):
                return self.present(each, layer)
        return self.present(self.drawn if self.kv is not None else self.scales, layer)

    def lacks_keys(self, scale: int, layer: int) -> bool:
        """Whether tokens of this scale or of one before it never entered the layer's cache."""
        return any(self.span(each, layer) is not None for each in range(1, scale + 1)) if self.pruning else False

    def measures_entropy(self, scale: int, layer: int) -> bool:
        """Whether a layer measures the attention entropy by which it prunes later."""
        pruning = self.pruning
        if pruning is None or pruning.score != "entropy" or scale != pruning.source:
            return False
        return any(span.first <= layer <= span.last for span in pruning.spans)

    def attention_kind(self, scale: int, layer: int) -> Kind:
        """What the layer's policy says of a scale, whichever tokens exist there."""
        policy = self.layers[layer]
        if policy == "cs4a":
            if scale in self.cs4a:
                return "sparse"
            return "decide" if scale == self.decision_scale and self.cs4a else "dense"
        return "sparse" if policy == "csla" and scale in self.csla else "dense"

    def _cs4a(self, scale: int) -> CS4AScale:
        if scale not in self.cs4a:
            known = ", ".join(map(str, self.cs4a)) or "none"
            raise PlanError(message("scale", f"be one of the plan's cs4a scales ({known})", scale), self.name)
        return self.cs4a[scale]

    def columns_to_keep(self, scale: int) -> int:
        """Columns that cs4a keeps at a scale: max(1, round(budget * keys))."""
        return max(1, round(self._cs4a(scale).budget * self.keys(scale)))

    def source_columns(self, scale: int) -> int:
        """Columns to select at the decision scale S for a target scale, at equal total budget.

        ``identity`` and ``relative`` map one key to one key: min(columns_to_keep, keys(S)). ``footprint`` keeps the
        source cell's area at the target: columns_to_keep * keys(S) / keys(scale), at least 1.
        """
        columns = self.columns_to_keep(scale)
        if self.decision_scale is None:
            raise PlanError(message("decision_scale", "be set where cs4a columns are selected", "null"), self.name)
        source = self.keys(self.decision_scale)
        if self.index_map == "footprint":
            return max(1, round(columns * source / self.keys(scale)))
        return min(columns, source)

    def windows_list(self, scale: int) -> list[int]:
        """csla windows at a target scale as `local_columns` takes them: one side per scale 1..scale, 0 for none."""
        self.grid(scale)
        if scale not in self.csla:
            known = ", ".join(map(str, self.csla)) or "none"
            raise PlanError(message("scale", f"be one of the plan's csla scales ({known})", scale), self.name)
        windows = self.csla[scale].windows
        return [windows.get(source, 0) for source in range(1, scale + 1)]

    @property
    def all_dense(self) -> bool:
        """Whether the plan leaves nothing out: dense attention of every token and row of every scale."""
        return self.planned_sites() == 0 and self.guidance is None and not self.shortens and self.kv is None

    def planned_sites(self) -> int:
        """Number of (scale, layer) pairs that are not dense."""
        return sum(
            self.kind(scale, layer) != "dense"
            for scale in range(1, self.scales + 1)
            for layer in range(len(self.layers))
        )


def model_fingerprint(shapes: Iterable[tuple[str, Sequence[int]]], dtype: str) -> str:
    """``sha256:...`` over (module or parameter name, shape) pairs and the dtype; the order of pairs does not matter."""
    entries = sorted([name, [int(size) for size in shape]] for name, shape in shapes)
    text = json.dumps({"dtype": dtype, "shapes": entries}, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def as_json(plan: PlanFields) -> dict[str, Any]:
    """The plan as plain JSON values, in the order of the file, without its digest."""
    return plan.model_dump(mode="json")
