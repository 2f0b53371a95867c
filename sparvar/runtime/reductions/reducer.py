"""Which rows and tokens of a scale exist: what a plan leaves out beside columns, around the blocks of one generation.

Between the first and the last block that runs reduced, the model is handed back the very tensor that it gave, and what
was really computed is held here: nothing is scattered and gathered again between blocks, and a model that changes its
tokens between two blocks is found out instead of losing the change: by the tensor's identity and, outside of inference
mode, where tensors do not count it, by how often it has been written in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparvar.errors import SessionError, message
from sparvar.runtime.reductions.argument_axes import (
    Path,
    Roles,
    cache_places,
    check_guided,
    enlarge,
    half,
    map_tensors,
    tensors_of,
    version_of,
)
from sparvar.runtime.reductions.scores import (
    anchors_of,
    change,
    entropy,
    merge_groups,
    merged,
    nearest_anchor,
    score_tokens,
)
from sparvar.runtime.reductions.tile_order import TileOrder
from sparvar.scale_plans import Plan, PrunedSpan

ORDERS: dict[tuple[Any, ...], TileOrder] = {}
"""Of every grid, tile and device in use; small, and the same for all sessions."""


def tile_order(grid: tuple[int, int], tile: tuple[int, int], device: torch.device) -> TileOrder:
    """The order of a grid's tokens by tile."""
    key = (grid, tile, device)
    if key not in ORDERS:
        ORDERS[key] = TileOrder.of(grid, tile, device)
    return ORDERS[key]


@dataclass
class Kept:
    """Tokens of a scale that a span computes.

    Attributes:
        tokens: int64 [n] in tile order.
        starts: int32 [G + 1], the first of each tile's.
    """

    tokens: Tensor
    starts: Tensor


@dataclass
class Reducer:
    """The reductions of one generation.

    Attributes:
        plan: what is left out where.
        kept: of the span that runs now; None where all tokens exist.
        entropy: per layer, attention entropy of the tokens of the source scale, mean over heads and rows, [N_S].
        alive: per span, the keys that exist, bool [T] over the whole schedule; absent while all do.
    """

    plan: Plan
    kept: Kept | None = None
    entropy: dict[int, Tensor] = field(default_factory=dict)
    alive: dict[int, Tensor] = field(default_factory=dict)
    _roles: Roles = field(default_factory=Roles)
    _returned: Tensor | None = None
    _returned_version: int | None = None
    _computed: Tensor | None = None
    _entered: Tensor | None = None
    _groups: Tensor | None = None
    _begun: dict[int, Tensor] = field(default_factory=dict)
    _source: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _previous: dict[int, Tensor] = field(default_factory=dict)
    _guidance: Tensor | None = None
    _gathered: dict[Path, tuple[Tensor, int | None, Tensor]] = field(default_factory=dict)
    _chosen: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def reduce_call(
        self, module: nn.Module, layer: int, scale: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments on which a block runs, of those that the model gave.

        Raises:
            SessionError: the model changed its tokens between two blocks that run reduced, or there is no guidance.
        """
        path, x = next((path, tensor) for path, tensor in tensors_of(args, kwargs) if tensor.ndim == 3)
        if layer == 0:
            self._roles.learn(x, x.shape[1], args, kwargs)
            self._returned = self._computed = None
            self._gathered.clear()
        conditional = self.plan.conditional(scale)
        if self._returned is None:
            work = x
            if conditional:
                check_guided(x)
                work = half(x)
        elif x is self._returned and version_of(x) == self._returned_version:
            assert self._computed is not None
            work = self._computed
        else:
            raise SessionError(
                message(
                    f"layer {layer} at {self.plan.label(scale)}",
                    "be given what the layer before it returned, as tokens between them are left out",
                    f"{'the same tensor, written in place' if x is self._returned else 'another tensor'}: the model"
                    " changes its tokens between blocks",
                    "let spans of pruning begin and end where it does, or take guidance out of the plan",
                )
            )
        span = self.plan.span(scale, layer)
        if span is not None and layer == span.first:
            self.kept = self._choose(span, scale, work)
            self._entered = work
            self._gathered.clear()
            assert self.plan.pruning is not None
            if self.plan.pruning.fill == "merge":
                self._groups = merge_groups(work, self.kept.tokens)
                work = merged(work, self._groups, len(self.kept.tokens))
            else:
                work = work[:, self.kept.tokens]
        self._note_source(scale, layer, work)
        if conditional:
            self._halve_caches(module, x.shape[0], scale, layer)
        if span is None and not conditional:
            return args, kwargs
        self._returned = x
        return map_tensors(
            args, kwargs, lambda where, tensor: work if where == path else self._part(where, tensor, conditional)
        )

    def restore_output(self, layer: int, scale: int, out: Any) -> Any:
        """What the model gets for a block's output."""
        if not isinstance(out, Tensor):
            raise SessionError(message(f"layer {layer}", "return its tokens [B, N, C]", type(out).__name__))
        span = self.plan.span(scale, layer)
        work = out
        if span is not None and layer == span.last:
            work = self._restore(span, scale, out)
            self.kept = None
            self._entered = None
            self._gathered.clear()
        self._keep_source(scale, layer, work)
        self._keep_previous(scale, layer, work)
        last = layer == len(self.plan.layers) - 1
        conditional = self.plan.conditional(scale)
        if last:
            self._returned = self._computed = None
            if conditional:
                return torch.cat((work, self._unconditional(work, scale)))
            self._note_guidance(scale, work)
            return work
        if conditional or (span is not None and layer < span.last):
            assert self._returned is not None
            self._computed, self._returned_version = work, version_of(self._returned)
            return self._returned
        self._returned = self._computed = None
        return work

    def tokens(self, scale: int, layer: int) -> int:
        """Tokens that a layer's attention sees at a scale."""
        span = self.plan.span(scale, layer)
        return self.plan.tokens(scale) if span is None else self.plan.kept_tokens(scale, span)

    def span_number(self, layer: int) -> int:
        """Number of the span that holds a layer."""
        assert self.plan.pruning is not None
        return next(n for n, span in enumerate(self.plan.pruning.spans) if span.first <= layer <= span.last)

    def places(self, number: int, scale: int) -> Tensor:
        """Keys of a scale that the layers of a span have, ascending, int64; how many is known without looking."""
        device = self.alive[number].device
        parts, begin = [], 0
        for each, kept in sorted(self._chosen[number].items()):
            offset = self.plan.offset(each)
            parts += [torch.arange(begin, offset, device=device), offset + kept]
            begin = offset + self.plan.tokens(each)
        return torch.cat([*parts, torch.arange(begin, self.plan.keys(scale), device=device)])

    def _part(self, path: Path, tensor: Tensor, conditional: bool) -> Tensor:
        """The rows and tokens of another argument that exist."""
        known = self._gathered.get(path)
        if known is not None and known[0] is tensor and known[1] == version_of(tensor):
            return known[2]
        part = half(tensor) if conditional and self._roles.rows(path) else tensor
        if self.kept is not None:
            for axis in self._roles.tokens(path):
                part = part.index_select(axis, self.kept.tokens)
        self._gathered[path] = tensor, version_of(tensor), part
        return part

    def _choose(self, span: PrunedSpan, scale: int, work: Tensor) -> Kept:
        pruning = self.plan.pruning
        assert pruning is not None
        number = pruning.spans.index(span)
        grid = self.plan.grid(scale)
        order = tile_order(grid, self.plan.tile, work.device)
        scores = self._scores(span, scale, work)
        if pruning.fill == "anchor":
            scores = scores.masked_fill(anchors_of(grid, work.device), float("inf"))
        kept = Kept(*order.keep(scores, self.plan.kept_tokens(scale, span)))
        begin, tokens = self.plan.offset(scale), self.plan.tokens(scale)
        if number not in self.alive:
            self.alive[number] = torch.ones(self.plan.keys(self.plan.scales), dtype=torch.bool, device=work.device)
        mask = self.alive[number]
        mask[begin : begin + tokens] = False
        mask[begin + kept.tokens] = True
        self._chosen.setdefault(number, {})[scale] = kept.tokens.sort().values
        return kept

    def _scores(self, span: PrunedSpan, scale: int, work: Tensor) -> Tensor:
        """Importance of the tokens ``work`` [B, N, C] that a span is given: [N]."""
        pruning, grid = self.plan.pruning, self.plan.grid(scale)
        assert pruning is not None
        source = self.plan.grid(pruning.source)
        if pruning.score == "change":
            before, behind = (part[: work.shape[0]] for part in self.source_of(span))
            return change(before, behind, source, grid)
        if pruning.score != "entropy":
            return score_tokens(pruning.score, work, scale, grid)
        measured = [self.entropy[layer] for layer in range(span.first, span.last + 1) if layer in self.entropy]
        if not measured:
            subject = f"layers {span.first} to {span.last}"
            must = f"have measured their entropy at the source scale {pruning.source}"
            raise SessionError(message(subject, must, "none", "generate from the first scale"))
        return entropy(measured, source, grid)

    def _restore(self, span: PrunedSpan, scale: int, out: Tensor) -> Tensor:
        """All tokens behind a span: what it computed, and what stands for the others."""
        pruning, entered, kept = self.plan.pruning, self._entered, self.kept
        assert pruning is not None and entered is not None and kept is not None
        if pruning.fill == "merge":
            assert self._groups is not None
            return out[:, self._groups]
        if pruning.fill == "input":
            whole = entered.clone()
        elif pruning.fill == "output":
            whole = self.enlarged(span, scale, "output", out.shape[0])
        elif pruning.fill == "previous":
            whole = self.enlarged_previous(span, scale, out.shape[0])
        else:
            whole = entered + self.enlarged(span, scale, "delta", out.shape[0])
        whole[:, kept.tokens] = out.to(whole.dtype)
        if pruning.fill == "anchor":
            source = self.enlarged(span, scale, "output", out.shape[0])
            whole = nearest_anchor(whole, kept.tokens, source, self.plan.grid(scale))
        return whole

    def source_of(self, span: PrunedSpan) -> tuple[Tensor, Tensor]:
        """What went into a span and came out at the source scale, [rows, N_S, C] each.

        Raises:
            SessionError: the generation did not pass the source scale.
        """
        found = self._source.get(span.first)
        if found is None:
            assert self.plan.pruning is not None
            subject = f"layers {span.first} to {span.last}"
            must = f"have run at the source scale {self.plan.pruning.source}"
            raise SessionError(message(subject, must, "no", "generate from the first scale"))
        return found

    def enlarged(self, span: PrunedSpan, scale: int, what: str, rows: int) -> Tensor:
        """``output`` or ``delta`` of a span at the source scale, on the grid of ``scale``: [rows, N, C]."""
        assert self.plan.pruning is not None
        before, behind = (part[:rows] for part in self.source_of(span))
        part = behind if what == "output" else behind - before
        return enlarge(part, self.plan.grid(self.plan.pruning.source), self.plan.grid(scale))

    def enlarged_previous(self, span: PrunedSpan, scale: int, rows: int) -> Tensor:
        """All tokens behind a span at the scale before, on the grid of ``scale``: [rows, N, C], memory of its own.

        Raises:
            SessionError: the generation did not pass that scale.
        """
        found = self._previous.pop(span.first, None)  # what this scale gives takes its place
        if found is None:
            subject = f"layers {span.first} to {span.last}"
            must = f"have run at the scale before, {scale - 1}"
            raise SessionError(message(subject, must, "no", "generate from the first scale"))
        return enlarge(found[:rows], self.plan.grid(scale - 1), self.plan.grid(scale))

    def _note_source(self, scale: int, layer: int, work: Tensor) -> None:
        pruning = self.plan.pruning
        if pruning is not None and scale == pruning.source:
            for span in pruning.spans:
                if span.first == layer:
                    self._begun[layer] = work

    def _keep_source(self, scale: int, layer: int, work: Tensor) -> None:
        pruning = self.plan.pruning
        if pruning is not None and scale == pruning.source:
            for span in pruning.spans:
                if span.last == layer:
                    # A copy: a model may write into what it was given (Infinity adds its level embedding to it).
                    self._source[span.first] = self._begun.pop(span.first), work.clone()

    def _keep_previous(self, scale: int, layer: int, work: Tensor) -> None:
        """Keep what stands behind a span, whether or not it left out tokens here, if the next scale will want it."""
        pruning = self.plan.pruning
        if pruning is None or pruning.fill != "previous" or scale == self.plan.scales:
            return
        span = self.plan.span(scale + 1, layer)
        if span is not None and span.last == layer:
            self._previous[span.first] = work.clone()  # as for the source

    def _note_guidance(self, scale: int, work: Tensor) -> None:
        guidance, adapt = self.plan.guidance, self.plan.adapt
        # A plan that adapts may drop the rows from the next scale on.
        next_to_drop = guidance is not None and guidance.fill == "delta" and scale == guidance.conditional_from - 1
        may_drop = adapt is not None and bool(adapt.conditional) and adapt.fill == "delta" and scale == adapt.scale
        if next_to_drop or (may_drop and work.shape[0] % 2 == 0):
            self._guidance = half(work) - work[work.shape[0] // 2 :]

    def _unconditional(self, work: Tensor, scale: int) -> Tensor:
        guidance = self.plan.guidance
        assert guidance is not None
        if guidance.fill == "copy":
            return work
        assert self._guidance is not None  # the scale before has been drawn, or the generation had refused this one
        source = self.plan.grid(guidance.conditional_from - 1)
        return work - enlarge(self._guidance, source, self.plan.grid(scale))

    def _halve_caches(self, module: nn.Module, rows: int, scale: int, layer: int) -> None:
        """Give the block's caches the rows that exist."""
        for holder, key, cache in list(cache_places(module, rows, self.plan.held(scale - 1, layer))):
            holder[key] = half(cache)

    def release(self) -> None:
        """Drop everything that the generation held."""
        self.kept = self._entered = self._groups = self._returned = self._computed = self._guidance = None
        behind = self._begun, self._source, self._previous
        for table in (self.entropy, self.alive, self._chosen, self._gathered, *behind):
            table.clear()


def reducer_of(plan: Plan) -> Reducer | None:
    """The reducer of a plan, or None where nothing but columns is left out."""
    return Reducer(plan) if plan.reduces else None
