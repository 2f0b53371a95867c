"""A whole plan, run slowly on the landscape model: every key in its place, and masks for what is not attended to.

Keys that pruning or KV compression removed are false in a mask over whole grids; lists of columns are masks, too. How
passes meet at a site is written here once more from docs/design, and not taken from the runtime: keys keep their
places, a list is mapped first and intersected with what exists afterwards. Lists are mapped by the ops' set-based
references, which tests/kernels prove.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.kernels import ColumnMap, LocalWindows, Schedule
from sparvar.kernels.local_columns import reference as local_reference
from sparvar.kernels.map_columns import reference as map_reference
from sparvar.scale_plans import Plan
from sparvar.zoo.model import LandscapeVAR
from tests import kv_reference
from tests.reductions_reference import Reductions, Run, draw


def reductions_of(plan: Plan) -> Reductions:
    """What a plan leaves out beside columns and keys."""
    found = Reductions(skip=plan.skip.last if plan.skip else 0)
    if plan.pruning is not None:
        found.score, found.fill, found.source = plan.pruning.score, plan.pruning.fill, plan.pruning.source
        found.spans = [
            # The share that gives just the plan's count, as a scale that is computed whole is no span.
            (span.first, span.last, {scale: plan.kept_tokens(scale, span) / plan.tokens(scale) for scale in span.keep})
            for span in plan.pruning.spans
        ]
    if plan.guidance is not None:
        found.conditional_from, found.guidance_fill = plan.guidance.conditional_from, plan.guidance.fill
    return found


@dataclass
class PlanRun(Run):
    """A run whose attention follows a plan.

    Attributes:
        whole: per layer keys and values [rows, H, T, D], zeros where there are none, and which exist [rows, H, T].
        sums: per cs4a layer the column sums of the decision scale, [rows, H, G, T], float64.
        lost: per cs4a layer what its sparse attention lost there, [rows, H, N_S, D].
        gap: least distance between the last column that was selected and the first that was not.
    """

    plan: Plan = field(kw_only=True)
    whole: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)
    lost: dict[int, Tensor] = field(default_factory=dict)
    gap: float = 1.0

    def attend(self, layer: int, scale: int, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        plan, (rows, heads, _, dim) = self.plan, q.shape
        tokens = plan.tokens(scale)
        places = torch.arange(tokens) if kept is None else kept
        new = [part.new_zeros(rows, heads, tokens, dim).index_copy(2, places, part) for part in (k, v)]
        there = torch.zeros(rows, heads, tokens, dtype=torch.bool)
        there[:, :, places] = True
        old = self.whole.get(layer)
        if old is None:
            old = k.new_zeros(rows, heads, 0, dim), v.new_zeros(rows, heads, 0, dim), there[:, :, :0]
        keys, values, exists = (
            torch.cat((before[:rows], now), 2) for before, now in zip(old, (*new, there), strict=True)
        )
        self.whole[layer] = keys, values, exists
        mask = exists[:, :, None].expand(-1, -1, len(places), -1)
        policy, correction = plan.layers[layer], None
        if policy == "csla" and scale in plan.csla:
            mask = mask & self.member([[self.windows(scale)]], scale, places)
        elif policy == "cs4a" and scale in plan.cs4a:
            mask = mask & self.member(self.mapped(layer, scale, rows), scale, places)
            correction = self.correction(layer, scale, rows)
        weights = attention(q, keys, mask)
        out = (weights @ values.double()).float()
        if correction is not None:
            out = out + correction[:, :, places]
        if policy == "cs4a" and scale == plan.decision_scale:
            self.decide(layer, q, keys, values, weights, out)
        if scale == self.what.source:
            self.entropies[layer] = -torch.xlogy(weights, weights).sum(-1).mean((0, 1)).float()
        self.drop(layer, scale, q)
        return out

    def tiles(self, scale: int) -> Tensor:
        """The number of every token's tile."""
        (h, w), (tile_h, tile_w) = self.plan.grid(scale), self.plan.tile
        rows, columns = torch.arange(h) // tile_h, torch.arange(w) // tile_w
        return (rows[:, None] * -(-w // tile_w) + columns).flatten()

    def member(self, lists: list[list[list[list[int]]]], scale: int, places: Tensor) -> Tensor:
        """Lists [rows or 1][H or 1][G] of keys as a mask [rows or 1, H or 1, n, T] of the tokens at ``places``."""
        shape = len(lists), len(lists[0]), len(lists[0][0]), self.plan.keys(scale)
        mask = torch.zeros(shape, dtype=torch.bool)
        for b, of_row in enumerate(lists):
            for h, of_head in enumerate(of_row):
                for tile, keys in enumerate(of_head):
                    mask[b, h, tile, keys] = True
        return mask[:, :, self.tiles(scale)[places]]

    def windows(self, scale: int) -> list[list[int]]:
        plan = self.plan
        windows = tuple(plan.windows_list(scale))
        return local_reference.run(LocalWindows(self.geometry, scale, plan.tile, windows, plan.sink_scales))

    @property
    def geometry(self) -> Schedule:
        return Schedule.of(self.plan.schedule, self.plan.prefix)

    def top(self, sums: Tensor, count: int) -> list[list[list[list[int]]]]:
        """The ``count`` greatest columns of sums [rows, H, G, T], ascending."""
        order = sums.sort(dim=-1, descending=True, stable=True)
        if count < sums.shape[-1]:
            self.gap = min(self.gap, float((order.values[..., count - 1] - order.values[..., count]).min()))
        found: list[list[list[list[int]]]] = order.indices[..., :count].sort(-1).values.tolist()
        return found

    def mapped(self, layer: int, scale: int, rows: int) -> list[list[list[list[int]]]]:
        plan = self.plan
        assert plan.decision_scale is not None
        window = plan.cs4a[scale].window
        mapping = ColumnMap(
            self.geometry, plan.decision_scale, scale, plan.tile, plan.index_map, plan.sink_scales, window
        )
        source = self.top(self.sums[layer][:rows], plan.source_columns(scale))
        return [[map_reference.run(lists, mapping) for lists in of_row] for of_row in source]

    def decide(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, weights: Tensor, out: Tensor) -> None:
        plan, scale = self.plan, self.plan.decision_scale
        assert scale is not None
        tiles = self.tiles(scale)
        self.sums[layer] = torch.stack([weights[:, :, tiles == tile].sum(2) for tile in range(int(tiles.max()) + 1)], 2)
        if plan.output_correction:
            kept = max(1, round(plan.cs4a[min(plan.cs4a)].budget * plan.keys(scale)))
            mask = self.member(self.top(self.sums[layer], kept), scale, torch.arange(q.shape[2]))
            self.lost[layer] = out - (attention(q, keys, mask) @ values.double()).float()

    def correction(self, layer: int, scale: int, rows: int) -> Tensor | None:
        if layer not in self.lost or self.plan.decision_scale is None:
            return None
        lost = self.lost[layer][:rows]
        grids = lost.transpose(2, 3).flatten(0, 1).unflatten(2, self.plan.grid(self.plan.decision_scale))
        grown = F.interpolate(grids, size=self.plan.grid(scale), mode="bilinear", align_corners=False)
        return grown.flatten(2).unflatten(0, lost.shape[:2]).transpose(2, 3)

    def drop(self, layer: int, scale: int, q: Tensor) -> None:
        """What KV compression removes, by the slow reference that has lists of keys."""
        kv, plan = self.plan.kv, self.plan
        if kv is None or scale >= plan.drawn:
            return
        what = kv_reference.Compression(
            kv.method, kv.kinds, kv.keep, plan.sink_scales, kv.queries, kv.pool, kv.store == "bfloat16"
        )
        run = kv_reference.Run(self.model, what)
        keys, values, exists = (part.clone() for part in self.whole[layer])
        origin = [(each, cell) for each in range(1, scale + 1) for cell in range(plan.tokens(each))]
        for row, of_row in enumerate(exists.tolist()):
            for head, of_head in enumerate(of_row):
                run.caches[layer, row, head] = [
                    kv_reference.Kept(*origin[place], keys[row, head, place], values[row, head, place])
                    for place, is_there in enumerate(of_head)
                    if is_there
                ]
        run.drop(layer, scale, q)
        keys, values, exists = self.whole[layer] = torch.zeros_like(keys), torch.zeros_like(values), exists & False
        for (_, row, head), cache in run.caches.items():
            for kept in cache:
                place = plan.offset(kept.scale) + kept.cell
                keys[row, head, place], values[row, head, place] = kept.key, kept.value
                exists[row, head, place] = True


def attention(q: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Weights [rows, H, n, T] in float64; zeros where a mask leaves nothing."""
    scores = (q.double() @ keys.double().transpose(2, 3)).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0)


@torch.inference_mode()
def generate(model: LandscapeVAR, label: str, seed: int, plan: Plan) -> tuple[Tensor, float]:
    """One image [1, 3, H, W] by a plan, and how far the closest of its decisions was from falling the other way."""
    run = PlanRun(model, reductions_of(plan), plan=plan)
    image = draw(run, label, seed)
    return image, min(run.margin, run.gap)
