"""Measure every candidate beside dense attention, on the same q, k and v, while the unmodified model generates.

Kept from one scale to later ones, per layer and decision scale S: column sums [B, H, G_S, T_S] and one correction
[B, H, N_S, D] per first budget in bfloat16; for ever: float64 sums per (scale, layer, candidate, head). So memory is
bounded by ``B * H * sum over S of (4 * G_S * T_S + 2 * F * N_S * D)`` bytes per layer and does not grow with prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparvar import kernels
from sparvar.calibrate.candidates.candidate import (
    Candidate,
    ColumnCandidate,
    Setting,
    WindowCandidate,
    candidate_text,
    read_candidate,
)
from sparvar.calibrate.candidates.space import Choice, Space, plan_of
from sparvar.calibrate.measure.pruning import PruningSums, add_values
from sparvar.errors import SparvarError, message
from sparvar.runtime.columns import Columns
from sparvar.runtime.generation import Generation, SiteContext
from sparvar.runtime.geometry import query_tiles
from sparvar.runtime.hooks import Hook
from sparvar.runtime.site_ops import (
    attend_columns,
    attention_with_stats,
    local_columns,
    mapped_columns,
    upsampled_delta,
)
from sparvar.scale_plans import Plan

Sums = dict[str, Any]
"""Per site: ``norm`` and ``norm_seen`` [H], ``entropy`` [H] and ``calls``; ``sink`` [scales]; ``near``, see
`WindowMass`; what `PruningSums` adds; and of every `Candidate` ``errors`` [H], ``kept`` (share of keys) and ``recall``
(share of softmax mass on the kept columns), all summed over generations."""

BY_CANDIDATE = ("errors", "kept", "recall")
"""Those of the sums that are tables from a candidate."""

SIDES = (1, 3, 5, 7, 9)
"""Windows whose mass is measured."""


class Observer(Hook):
    """Sees dense attention and adds up, at the scales of a space, what every candidate would have lost.

    Errors are squared: sum of (candidate - dense)^2 over rows, the queries of a `Sample` and channels, per head;
    ``norm_seen`` is the same of the dense output alone, so that their quotient is the squared relative error. ``norm``
    is over all queries. ``turn``: number of the generation; others look at other queries.
    """

    def __init__(self, base: Plan, space: Space, pruning: PruningSums | None = None, turn: int = 0) -> None:
        self.base, self.space, self.pruning, self.turn = base, space, pruning, turn
        # Scale 1 may come with the prefix; its one or few queries have nothing to tell.
        self.scales = tuple(range(2 if pruning is not None else min(space.decisions), base.scales + 1))
        self.rows = 0
        self.sites: dict[tuple[int, int], Sums] = {}
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._delta: dict[tuple[int, int, float], Tensor] = {}
        self._plans: dict[tuple[int, Setting, float], Plan] = {}
        self._look = base.replace(column_sum_stride=space.stride)
        self._near = WindowMass(base) if pruning is not None else None
        pairs = [(number, sinks) for number in range(len(space.ladders)) for sinks in space.spans]
        self._csla = {pair: self._local_plan(*pair) for pair in pairs}
        self._lists: dict[tuple[int, int], dict[int, Columns]] = {pair: {} for pair in pairs}

    def _plan(self, decision: int, setting: Setting, budget: float) -> Plan:
        key = decision, setting, budget
        if key not in self._plans:
            budgets = tuple((target, budget) for target in range(decision + 1, self.base.scales + 1))
            layers = ("cs4a",) * len(self.base.layers)
            self._plans[key] = plan_of(self.base, self.space, Choice(layers, setting, decision, budgets=budgets))
        return self._plans[key]

    def _local_plan(self, number: int, sinks: int) -> Plan:
        windows = tuple((target, number) for target in range(self.space.first, self.base.scales + 1))
        choice = Choice(("csla",) * len(self.base.layers), Setting("relative", sinks), windows=windows)
        return plan_of(self.base, self.space, choice)

    def attention(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Dense attention, after every candidate has been run beside it.

        Raises:
            SparvarError: the output holds NaN or infinities.
        """
        self.rows = query.shape[0]
        out, sums, entropy = attention_with_stats(self._look, site.scale, query, key, value, scale)
        if not bool(torch.isfinite(out).all()):
            raise SparvarError(
                message(
                    f"attention of layer {site.layer} at scale {site.scale}",
                    "be finite",
                    "NaN or infinities",
                    "the model itself overflows there: calibrate it in float32 or bfloat16, and check its weights",
                )
            )
        found = self.sites.setdefault((site.scale, site.layer), {name: {} for name in BY_CANDIDATE})
        add_values(found, "norm", _energy(out))
        add_values(found, "entropy", entropy.double().mean(dim=(0, 2)).tolist())
        add_values(found, "calls", [1.0])
        if self.pruning is not None and self._near is not None:
            self.pruning.add(site.scale, site.layer, out, entropy, found)
            add_values(found, "sink", self._sink_mass(site.scale, sums))
            if site.scale >= self.space.first:
                self._near.add(site.scale, sums, found)
        if self.space.measured(site.scale):
            seen = Sample(self.base.grid(site.scale), self.base.tile, self.turn + site.layer)
            mass = seen.tiles(sums / sums.sum(-1, keepdim=True))
            view = _View(seen, seen.queries(query), key, value, scale, seen.queries(out), mass, found)
            add_values(found, "norm_seen", _energy(view.out))
            self._mapped(site, view)
            self._local(site, view)
        if site.scale in self.space.decisions:
            self._decided(site, (query, key, value, scale), out, sums)
        if site.scale == self.base.scales:
            for table in (self._sums, self._delta):
                for entry in [entry for entry in table if entry[0] == site.layer]:
                    del table[entry]  # type: ignore[arg-type]
        return out

    def _decided(
        self, site: SiteContext, operands: tuple[Tensor, Tensor, Tensor, float], out: Tensor, sums: Tensor
    ) -> None:
        """Keep what a decision at this scale would keep: column sums, and a correction per first budget."""
        query, key, value, scale = operands
        self._sums[site.layer, site.scale] = sums
        for first in self.space.firsts:
            wanted = max(1, round(first * self.base.keys(site.scale)))
            columns = Columns(*kernels.select_columns(sums, wanted))
            kept = attend_columns(query, key, value, columns, None, scale, query_tiles(self.base, site.scale))
            # Half of the memory; its rounding is far below what candidates lose.
            self._delta[site.layer, site.scale, first] = (out - kept).bfloat16()

    def _sink_mass(self, scale: int, sums: Tensor) -> list[float]:
        """Share of softmax mass on the prefix and the first n scales, for n = 1..the first decision scale - 1."""
        mass = sums.double().mean(dim=(0, 1, 2))
        mass = (mass / mass.sum()).cumsum(0)
        ends = [self.base.keys(min(leading, scale)) for leading in range(1, min(self.space.decisions))]
        return [float(mass[end - 1]) for end in ends]

    def _mapped(self, site: SiteContext, view: _View) -> None:
        for decision in self.space.decisions:
            if decision >= site.scale:
                continue
            chosen: dict[int, Columns] = {}
            grown: dict[float, Tensor] = {}
            for setting in self.space.settings:
                for budget in self.space.budgets:
                    plan = self._plan(decision, setting, budget)
                    wanted = plan.source_columns(site.scale)
                    if wanted not in chosen:
                        chosen[wanted] = Columns(*kernels.select_columns(self._sums[site.layer, decision], wanted))
                    context = SiteContext(_candidate_generation(plan), site.layer, site.scale)
                    context.generation.columns[site.layer, wanted] = chosen[wanted]
                    columns = mapped_columns(context, view.query.shape[0])
                    candidate = ColumnCandidate(decision, setting, budget)
                    sparse = view.measure(candidate, columns, plan.tile)
                    for first in self.space.firsts:
                        if site.scale == decision + 1 and first != budget:
                            continue  # the correction is made with the first sparse scale's own budget
                        if first not in grown:
                            context.generation.delta[site.layer] = self._delta[site.layer, decision, first].to(
                                view.out.dtype
                            )
                            delta = upsampled_delta(context, view.query.shape[0])
                            assert delta is not None
                            grown[first] = view.sample.queries(delta) - view.out
                        corrected = replace(candidate, correction=first)
                        add_values(view.found["errors"], corrected, _energy(sparse + grown[first]))

    def _local(self, site: SiteContext, view: _View) -> None:
        for pair, plan in self._csla.items():
            columns = local_columns(plan, site.scale, view.query.device, self._lists[pair])
            view.measure(WindowCandidate(*pair), columns, plan.tile)


@dataclass(frozen=True)
class _View:
    """What candidates of a site see: sampled queries with their dense output and softmax mass, and all keys."""

    sample: Sample
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    out: Tensor
    mass: Tensor
    found: Sums

    def measure(self, candidate: Candidate, columns: Columns, tile: tuple[int, int]) -> Tensor:
        """Attend to the columns of a whole grid on the sample, add up what that loses, and return the output."""
        columns = self.sample.columns(columns)
        tiles = kernels.QueryTiles(self.sample.grid, tile)
        sparse = attend_columns(self.query, self.key, self.value, columns, None, self.scale, tiles)
        add_values(self.found["errors"], candidate, _energy(sparse - self.out))
        add_values(self.found["kept"], candidate, [float(columns.counts.double().mean()) / self.mass.shape[-1]])
        add_values(self.found["recall"], candidate, [float(mass_on(columns, self.mass).mean())])
        return sparse


class Sample:
    """Some rows of query tiles, on which candidates are run: every second or third, others at every turn.

    Errors are sums over queries, so that a share of them estimates the rest; rows, since pictures differ from top to
    bottom more than from left to right.
    """

    def __init__(self, grid: tuple[int, int], tile: tuple[int, int], turn: int) -> None:
        (height, width), (tile_h, tile_w) = grid, tile
        rows = -(-height // tile_h)
        step = max(1, min(3, rows // 2))
        self._shape, self._tiles = grid, (rows, -(-width // tile_w))
        self._kept = list(range(turn % step, rows, step))
        self._lines = [y for row in self._kept for y in range(row * tile_h, min((row + 1) * tile_h, height))]
        self.grid = len(self._lines), width
        """(h, w) of the sample; a row of tiles that the border cuts is its last."""

    def queries(self, tensor: Tensor) -> Tensor:
        """Of [B, H, N, D], the sampled queries."""
        return tensor.unflatten(2, self._shape)[:, :, self._lines].flatten(2, 3)

    def tiles(self, tensor: Tensor) -> Tensor:
        """Of [B, H, G, ...], the sampled tiles."""
        return tensor.unflatten(2, self._tiles)[:, :, self._kept].flatten(2, 3)

    def columns(self, columns: Columns) -> Columns:
        """The lists of the sampled tiles."""
        return Columns(self.tiles(columns.indices), self.tiles(columns.counts))


class WindowMass:
    """Share of softmax mass inside w x w windows at every earlier scale, as a csla tile sees them.

    The window of a tile is the union over its queries, so that the share is what csla would keep there. Column lists
    depend on the plan's geometry alone and are made once: O(K^2 * sides) short lists.
    """

    def __init__(self, base: Plan) -> None:
        self.base = base
        self._lists: dict[tuple[int, int, int], Columns] = {}

    def _columns(self, scale: int, source: int, side: int, device: torch.device) -> Columns:
        key = scale, source, side
        if key not in self._lists:
            schedule = kernels.Schedule.of(self.base.schedule, self.base.prefix)
            sides = tuple(side if number == source else 0 for number in range(1, scale + 1))
            windows = kernels.LocalWindows(schedule, scale, self.base.tile, sides, 0)
            self._lists[key] = Columns(*kernels.local_columns(windows, device))
        return self._lists[key]

    def add(self, scale: int, sums: Tensor, found: Sums) -> None:
        """Add ``near``: ``distance/side`` to the share, for distances 0..scale - 1; the prefix is not counted."""
        near = found.setdefault("near", {})
        mass = sums / sums.sum(-1, keepdim=True)
        before = mass[..., : self.base.prefix].sum(-1)
        for source in range(1, scale + 1):
            for side in SIDES:
                if side > 2 * max(self.base.grid(source)) - 1:
                    continue
                columns = self._columns(scale, source, side, sums.device)
                add_values(near, f"{scale - source}/{side}", [float((mass_on(columns, mass) - before).mean())])


def mass_on(columns: Columns, mass: Tensor) -> Tensor:
    """Softmax mass [B, H, G, T] that lies on the columns of each tile, [B, H, G]."""
    width = columns.indices.shape[-1]
    inside = torch.arange(width, device=mass.device) < columns.counts.unsqueeze(-1)
    at = columns.indices.long().expand(*mass.shape[:-1], width)
    return mass.gather(-1, at).mul_(inside).sum(-1)


def _candidate_generation(plan: Plan) -> Generation:
    def refuse(kind: str, scale: int) -> Any:
        raise AssertionError("a candidate's generation compiles nothing")

    return Generation(plan, {}, refuse)


def _energy(tensor: Tensor) -> list[float]:
    """Sum of squares per head, [H], of [B, H, N, D]."""
    # In memory [B, N, H, D], as attention writes it: one pass over rows of H * D, and no squares in memory.
    rows = tensor.float().transpose(1, 2).reshape(-1, tensor.shape[1] * tensor.shape[3])
    norms = torch.linalg.vector_norm(rows, dim=0).double().square()
    found: list[float] = norms.view(tensor.shape[1], tensor.shape[3]).sum(-1).tolist()
    return found


def as_record(sites: dict[tuple[int, int], Sums]) -> dict[str, Sums]:
    """Sums as JSON values: ``scale/layer`` for the site, and texts for candidates."""
    return {
        f"{scale}/{layer}": {
            name: {candidate_text(key): entry for key, entry in values.items()} if name in BY_CANDIDATE else values
            for name, values in sums.items()
        }
        for (scale, layer), sums in sites.items()
    }


def merged(records: list[dict[str, Sums]]) -> dict[tuple[int, int], Sums]:
    """Sums of several prompts added up, from `as_record`'s."""
    total: dict[tuple[int, int], Sums] = {}
    for record in records:
        for place, sums in record.items():
            scale, layer = map(int, place.split("/"))
            into = total.setdefault((scale, layer), {name: {} for name in BY_CANDIDATE})
            for name, values in sums.items():
                if not isinstance(values, dict):
                    add_values(into, name, values)
                    continue
                table = into.setdefault(name, {})
                for key, more in values.items():
                    add_values(table, read_candidate(key) if name in BY_CANDIDATE else key, more)
    return total
