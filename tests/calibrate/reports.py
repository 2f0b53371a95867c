"""Reports as a calibration writes them, made up but consistent, for models of any depth with 13 scales."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from sparvar.calibrate.budget import Effort
from sparvar.calibrate.candidates.candidate import ColumnCandidate, Setting, WindowCandidate, candidate_text
from sparvar.calibrate.candidates.space import Choice, Space, default_space, plan_of
from sparvar.calibrate.search.decisions import decisions_record
from sparvar.scale_plans import ModelInfo, Plan, Provenance, dense_plan, infinity_schedules

SIDES = (1, 3, 5, 7, 9, 11, 15)
REPRESENTATIVE = 6
TAU = 0.4
BETA = 0.5
SETTINGS = (Setting("relative", 4), Setting("footprint", 4))


def base_plan(layers: int, heads: int = 4) -> Plan:
    """A dense plan for 13 scales, 1x1 to 64x64."""
    sites = [f"blocks.{layer}.attn" for layer in range(layers)]
    return dense_plan(
        infinity_schedules()["1M/1"], ModelInfo(sites=sites, heads=heads, head_dim=64), name=f"{layers} layers"
    )


def policies(layers: int, kind: str) -> tuple[str, ...]:
    """``hybrid``: some dense, 60 % of the rest cs4a, then csla; or all layers of one policy."""
    if kind != "hybrid":
        return (kind,) * layers
    dense = 0 if layers == 1 else max(1, layers // 20)
    mapped = math.ceil(0.6 * (layers - dense))
    return ("dense",) * dense + ("cs4a",) * mapped + ("csla",) * (layers - dense - mapped)


def make_plan(layers: int = 6, kind: str = "hybrid", correction: bool = True) -> Plan:
    """A plan that calibration could have found; kind is hybrid, dense, cs4a or csla."""
    base = base_plan(layers)
    space = default_space(base)
    choice = Choice(
        policies(layers, kind),
        SETTINGS[1],
        decision=11,
        correction=correction,
        budgets=((12, 0.2), (13, 0.12)),
        windows=((11, 2), (12, 1), (13, 0)),
    )
    plan = plan_of(base, space, choice)
    sparse = plan.planned_sites() > 0
    note = "the cheapest found for min_psnr 32" if sparse else "all dense: no sparse plan met min_psnr 48"
    return plan.replace(provenance=Provenance(calibrated=True, tool="sparvar calibrate", note=note))


def make_report(plan: Plan, *, shipped: bool = True, pruning: bool = True) -> dict[str, Any]:
    """The report of a plan of `make_plan`, after a trip through JSON.

    Sections can be taken away from what is returned.
    """
    layers, sparse = len(plan.layers), plan.planned_sites() > 0
    dense_seconds = 0.9 * layers
    seconds = dense_seconds * (0.35 + 0.65 * plan.cost()) if sparse else dense_seconds
    budget = {"min_psnr": 32.0 if sparse else 48.0, "max_seconds": None, "min_ssim": None, "max_error": None}
    others = {"paper": _found(33.0, 0.70 * dense_seconds, 0.955)}
    if shipped:
        others["shipped"] = _found(32.3, 0.55 * dense_seconds, 0.95)
    held = _found(33.3, seconds, 0.957) if sparse else _found(100.0, dense_seconds, 1.0)
    tried = [(30.9, 0.93), (34.6, 1.11), (33.1, 1.0), (31.8, 0.97)] if sparse else [(41.0, 0.93), (46.0, 0.99)]
    report: dict[str, Any] = {
        "budget": budget,
        "effort": dataclasses.asdict(Effort.quick(3)),
        "plan": json.loads(plan.dumps()),
        "digest": plan.digest,
        "predicted": {"psnr_db": 33.7 if sparse else 100.0, "seconds": (0.98 if sparse else 1.0) * seconds},
        "checked": _found(33.1, seconds, 0.956) if sparse else None,
        "held_out": held,
        "held_out_attempts": 1,
        "all_dense": not sparse,
        "trials": [
            {
                "digest": "sha256:0",
                "predicted": {"psnr_db": psnr + 0.6, "seconds": share * seconds},
                "exact": layers <= 9,
                "measured": _found(psnr, share * seconds),
                "cost": plan.cost(),
            }
            for psnr, share in tried
        ],
        "front": [
            {"psnr_db": float(psnr), "seconds": dense_seconds * min(1.0, 0.36 + 0.0011 * (psnr - 20) ** 2)}
            for psnr in range(24, 45, 2)
        ],
        "others": others,
        "costs": {"dense_seconds": dense_seconds, "device": "a test"},
        "sites": _sites(plan),
        "machine": {"device": "a test", "torch": "2.13.0", "sparvar": "0"},
        "calibration_seconds": 612.0,
        "target": None,
        "nearest": None if sparse else "the nearest plan that was run reached 46.0 dB",
        "decisions": decisions_record(plan),
    }
    if pruning:
        report["pruning"] = _pruning(plan)
    made: dict[str, Any] = json.loads(json.dumps(report))
    return made


def _found(psnr: float, seconds: float, ssim: float | None = None) -> dict[str, Any]:
    each = [psnr] * 3 if psnr >= 100 else [psnr - 1.5, psnr, psnr + 1.5]
    values = {"psnr_db": each, "psnr_db_mean": psnr, "psnr_db_least": min(each), "seconds_median": seconds}
    return values if ssim is None else {**values, "ssim_mean": ssim}


def _depth(plan: Plan, layer: int) -> float:
    return layer / max(1, len(plan.layers) - 1)


def _rho(plan: Plan, scale: int) -> float:
    return 0.18 + 0.42 / (1 + math.exp(-(scale - 7.5)))


def _sites(plan: Plan) -> list[dict[str, Any]]:
    base = base_plan(len(plan.layers))
    space = default_space(base)
    shares = [
        {scale: plan_share(base, space, scale, number) for scale in range(space.first, base.scales + 1)}
        for number in range(len(space.ladders))
    ]
    found = []
    for scale in range(2, plan.scales + 1):
        for layer in range(len(plan.layers)):
            deep = _depth(plan, layer)
            entropy = math.log(plan.keys(scale)) * (0.9 - 0.45 * deep + 0.06 * math.sin(3.1 * layer))
            site = {
                "scale": scale,
                "layer": layer,
                "entropy": [entropy * (1 + 0.05 * (head - 1.5)) for head in range(plan.model.heads)],
                "rho": min(1.0, max(0.0, _rho(plan, scale) + 0.08 * math.sin(2.3 * layer))),
                "sink_mass": [
                    (0.12 + 0.2 * deep) * (1 - math.exp(-0.8 * n)) + (n / scale) ** 6 * 0.3 for n in range(1, scale)
                ],
                "window_mass": {
                    str(distance): {
                        str(side): 0.3 * 0.55**distance * (1 - math.exp(-side * (0.15 + 0.2 * deep))) for side in SIDES
                    }
                    for distance in range(min(scale, 8))
                },
                "relative_error": {},
                "recall": {},
                "kept": {},
            }
            if scale >= space.first:
                _candidates(site, base, space, shares, deep)
            found.append(site)
    return found


def plan_share(base: Plan, space: Space, scale: int, number: int) -> float:
    """Share of keys that csla keeps at a scale with the windows of one ladder."""
    plan = plan_of(base, space, Choice(("csla",) * len(base.layers), SETTINGS[1], windows=((scale, number),)))
    share = plan.kept_share(scale, "csla")
    assert share is not None
    return share


def _candidates(site: dict[str, Any], base: Plan, space: Space, shares: list[dict[int, float]], deep: float) -> None:
    scale = site["scale"]
    sinks = base.offset(SETTINGS[0].sinks + 1) / base.keys(scale)
    for decision in (number for number in space.decisions if number < scale):
        for number, setting in enumerate(SETTINGS):
            for budget in space.budgets:
                plain = candidate_text(ColumnCandidate(decision, setting, budget))
                recall = 1 - (1 - budget) ** (2.5 + 9 * deep) * (0.9 + 0.02 * (scale - decision) - 0.05 * number)
                error = 0.8 * (1 - recall) ** 0.7 * (0.4 + 0.6 * deep)
                site["kept"][plain] = budget + (1 - budget) * sinks
                site["recall"][plain] = recall
                site["relative_error"][plain] = error
                for first in space.firsts:
                    if scale != decision + 1 or first == budget:
                        corrected = ColumnCandidate(decision, setting, budget, first)
                        site["relative_error"][candidate_text(corrected)] = 0.7 * error
    for number, share in enumerate(shares):
        name = candidate_text(WindowCandidate(number, SETTINGS[0].sinks))
        site["kept"][name] = share[scale]
        site["relative_error"][name] = 0.25 * (1 - share[scale]) * (1.3 - deep) / (number + 1)


def _pruning(plan: Plan) -> dict[str, Any]:
    layers = range(len(plan.layers))
    height, width = plan.grid(REPRESENTATIVE)
    rho = {scale: _rho(plan, scale) for scale in range(2, plan.scales + 1)}
    ratio = [1.05 + 6 * abs(math.sin(1.7 * layer + 0.3)) ** 3 for layer in layers]
    scores = [math.exp(-BETA * (value - 1)) for value in ratio]
    taus = (0.2, 0.3, 0.4, 0.5, 0.7)
    depth = {tau: next((scale for scale in rho if rho[scale] >= tau), None) for tau in taus}
    return {
        "representative": REPRESENTATIVE,
        "rho": {str(scale): value for scale, value in rho.items()},
        "depth": [[tau, start] for tau, start in depth.items()],
        "ratio": ratio,
        "scores": scores,
        "classes": ["detail" if one > 0.7 else "global" if one < 0.3 else "ambiguous" for one in scores],
        "beta": BETA,
        "tau": TAU,
        "start": depth[TAU],
        "alpha": {"alpha_min": 0.1, "alpha_max": 0.4, "pruned_share": 0.2, "image_mse": 4e-4, "min_keep": 0.1},
        "alpha_curve": [
            {"alpha_max": alpha, "pruned_share": 0.45 * alpha, "image_mse": 2e-5 * math.exp(7 * alpha)}
            for alpha in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
        ],
        "notes": ["two layers were ambiguous and are kept"],
        "entropy_maps": [
            [
                [
                    2.0 + 2 * _depth(plan, layer) + math.sin(0.5 * y * ratio[layer]) * math.cos(0.4 * x + layer)
                    for x in range(width)
                ]
                for y in range(height)
            ]
            for layer in layers
        ],
    }
