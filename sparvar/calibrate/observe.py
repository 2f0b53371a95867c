"""Measure every candidate beside dense attention, on the same q, k and v, while the unmodified model generates.

Kept from one scale to later ones, per layer and decision scale S: column sums [B, H, G_S, T_S] and one correction
[B, H, N_S, D] per first budget, in fp32; for ever: float64 sums per (scale, layer, candidate, head). So memory is
bounded by ``4 * B * H * sum over S of (G_S * T_S + F * N_S * D)`` bytes per layer and does not grow with prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar import kernels
from sparvar.calibrate.space import Choice, Space, cs4a_key, csla_key, plan_of
from sparvar.errors import SparvarError, message
from sparvar.runtime.context import SiteContext
from sparvar.runtime.session import Columns, Session
from sparvar.runtime.site_ops import attend_columns, local_columns, look, mapped_columns, upsampled_delta
from sparvar.scale_plans import Plan

Sums = dict[str, Any]
"""Per site: ``norm`` [H], ``queries``, ``entropy`` [H], ``rho`` and ``calls``; ``sink`` [scales]; and per candidate
``error`` [H], ``kept`` (share of keys) and ``recall`` (share of softmax mass on the kept columns), all summed."""


class Observer:
    """Sees dense attention at the scales of a space and adds up what every candidate would have lost.

    Errors are squared: sum of (candidate - dense)^2 over rows, queries and channels, per head; ``norm`` is the same of
    the dense output alone, so that their quotient is the squared relative error.
    """

    def __init__(self, base: Plan, space: Space, on_site: Callable[[], None] = lambda: None) -> None:
        self.base, self.space, self.on_site = base, space, on_site
        self.scales = tuple(range(min(space.decisions), base.scales + 1))
        self.rows = 0
        self.sites: dict[tuple[int, int], Sums] = {}
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._delta: dict[tuple[int, int, float], Tensor] = {}
        self._plans: dict[tuple[int, str, float], Plan] = {}
        self._look = base.replace(column_sum_stride=space.stride, sink_scales=space.sink_scales)
        self._csla = [self._local_plan(number) for number in range(len(space.ladders))]
        self._lists: list[dict[int, Columns]] = [{} for _ in space.ladders]

    def _plan(self, decision: int, index_map: str, budget: float) -> Plan:
        key = decision, index_map, budget
        if key not in self._plans:
            budgets = tuple((target, budget) for target in range(decision + 1, self.base.scales + 1))
            layers = ("cs4a",) * len(self.base.layers)
            self._plans[key] = plan_of(self.base, self.space, Choice(layers, decision, index_map, budgets=budgets))
        return self._plans[key]

    def _local_plan(self, number: int) -> Plan:
        windows = tuple((target, number) for target in range(self.space.first, self.base.scales + 1))
        return plan_of(self.base, self.space, Choice(("csla",) * len(self.base.layers), windows=windows))

    def __call__(self, site: SiteContext, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Dense attention, after every candidate has been run beside it.

        Raises:
            SparvarError: the output holds NaN or infinities.
        """
        self.rows = query.shape[0]
        out, sums, entropy = look(self._look, site.scale, query, key, value, scale)
        if not bool(torch.isfinite(out).all()):
            raise SparvarError(
                message(
                    f"attention of layer {site.layer} at scale {site.scale}",
                    "be finite",
                    "NaN or infinities",
                    "the model itself overflows there: calibrate it in float32 or bfloat16, and check its weights",
                )
            )
        found = self.sites.setdefault((site.scale, site.layer), {"errors": {}, "kept": {}, "recall": {}})
        _add(found, "norm", _energy(out))
        _add(found, "entropy", entropy.double().mean(dim=(0, 2)).tolist())
        _add(found, "rho", [float((entropy < entropy.mean()).float().mean())])
        _add(found, "sink", self._sink_mass(sums))
        _add(found, "calls", [1.0])
        if site.scale >= self.space.first:
            self._mapped(site, (query, key, value, scale), out, sums, found)
            self._local(site, (query, key, value, scale), out, found)
        if site.scale in self.space.decisions:
            self._sums[site.layer, site.scale] = sums
            for first in self.space.firsts:
                wanted = max(1, round(first * self.base.keys(site.scale)))
                columns = Columns(*kernels.select_columns(sums, wanted))
                grid = self.base.grid(site.scale)
                kept = attend_columns(query, key, value, columns, None, scale, grid, self.base.tile)
                self._delta[site.layer, site.scale, first] = out - kept
        if site.scale == self.base.scales:
            for table in (self._sums, self._delta):
                for entry in [entry for entry in table if entry[0] == site.layer]:
                    del table[entry]  # type: ignore[arg-type]
        self.on_site()
        return out

    def _sink_mass(self, sums: Tensor) -> list[float]:
        """Share of softmax mass on the prefix and the first n scales, for n = 1..the first decision scale - 1."""
        mass = sums.double().mean(dim=(0, 1, 2))
        mass = (mass / mass.sum()).cumsum(0)
        ends = [self.base.keys(scale) for scale in range(1, min(self.space.decisions))]
        return [float(mass[end - 1]) for end in ends]

    def _mapped(
        self, site: SiteContext, operands: tuple[Tensor, Tensor, Tensor, float], out: Tensor, sums: Tensor, found: Sums
    ) -> None:
        query, key, value, scale = operands
        grid = self.base.grid(site.scale)
        for decision in self.space.decisions:
            if decision >= site.scale:
                continue
            chosen: dict[int, Columns] = {}
            grown: dict[float, Tensor] = {}
            for index_map in self.space.maps:
                for budget in self.space.budgets:
                    plan = self._plan(decision, index_map, budget)
                    wanted = plan.source_columns(site.scale)
                    if wanted not in chosen:
                        chosen[wanted] = Columns(*kernels.select_columns(self._sums[site.layer, decision], wanted))
                    context = SiteContext(_shadow(plan), site.layer, site.scale)
                    context.session.columns[site.layer, wanted] = chosen[wanted]
                    columns = mapped_columns(context, query.shape[0])
                    sparse = attend_columns(query, key, value, columns, None, scale, grid, plan.tile)
                    name = cs4a_key(decision, index_map, budget, None)
                    self._candidate(found, name, sparse, out, columns, sums)
                    for first in self.space.firsts:
                        if site.scale == decision + 1 and first != budget:
                            continue  # the correction is made with the first sparse scale's own budget
                        if first not in grown:
                            context.session.delta[site.layer] = self._delta[site.layer, decision, first]
                            delta = upsampled_delta(context, query.shape[0])
                            assert delta is not None
                            grown[first] = delta
                        name = cs4a_key(decision, index_map, budget, first)
                        _add(found["errors"], name, _energy(sparse + grown[first] - out))

    def _local(
        self, site: SiteContext, operands: tuple[Tensor, Tensor, Tensor, float], out: Tensor, found: Sums
    ) -> None:
        query, key, value, scale = operands
        for number, plan in enumerate(self._csla):
            columns = local_columns(plan, site.scale, query.device, self._lists[number])
            grid = self.base.grid(site.scale)
            sparse = attend_columns(query, key, value, columns, None, scale, grid, plan.tile)
            _add(found["errors"], csla_key(number), _energy(sparse - out))
            _add(found["kept"], csla_key(number), [_share(columns, key)])

    def _candidate(self, found: Sums, name: str, sparse: Tensor, out: Tensor, columns: Columns, sums: Tensor) -> None:
        _add(found["errors"], name, _energy(sparse - out))
        kept = float(columns.counts.double().mean()) / sums.shape[-1]
        _add(found["kept"], name, [kept])
        width = columns.indices.shape[-1]
        inside = torch.arange(width, device=sums.device) < columns.counts.unsqueeze(-1)
        at = columns.indices.long().clamp(0, sums.shape[-1] - 1)
        mass = torch.where(inside, sums.gather(-1, at), sums.new_zeros(())).sum(-1) / sums.sum(-1)
        _add(found["recall"], name, [float(mass.mean())])


def _shadow(plan: Plan) -> Session:
    def refuse(kind: str, scale: int) -> Any:
        raise AssertionError("a candidate's session compiles nothing")

    return Session.start(plan, {}, refuse)


def _energy(tensor: Tensor) -> list[float]:
    """Sum of squares per head, [H], of [B, H, N, D]."""
    found: list[float] = tensor.float().square().sum(dim=(0, 2, 3)).double().tolist()
    return found


def _share(columns: Columns, key: Tensor) -> float:
    return float(columns.counts.double().mean()) / key.shape[2]


def _add(table: dict[str, Any], name: str, values: list[float]) -> None:
    have = table.get(name)
    table[name] = values if have is None else [a + b for a, b in zip(have, values, strict=True)]


def as_record(sites: dict[tuple[int, int], Sums]) -> dict[str, Sums]:
    """Sums with JSON keys ``scale/layer``."""
    return {f"{scale}/{layer}": sums for (scale, layer), sums in sites.items()}


def merged(records: list[dict[str, Sums]]) -> dict[tuple[int, int], Sums]:
    """Sums of several prompts added up, from `as_record`'s."""
    total: dict[tuple[int, int], Sums] = {}
    for record in records:
        for place, sums in record.items():
            scale, layer = map(int, place.split("/"))
            into = total.setdefault((scale, layer), {"errors": {}, "kept": {}, "recall": {}})
            for name, values in sums.items():
                if isinstance(values, dict):
                    for candidate, more in values.items():
                        _add(into[name], candidate, more)
                else:
                    _add(into, name, values)
    return total
