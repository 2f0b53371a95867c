"""Choose the shipped plan of the landscape model by measurement.

``python benchmarks/sweep_landscape.py --out benchmarks/results/sweep-landscape-<device>.json``

Every candidate generates the same seeds as the dense model; PSNR, SSIM and the seconds of a generation are kept. The
seeds and classes used here are not those of ``sparvar bench generate``, which judges the choice. Candidates share
their compiled graphs, so that each costs a few generations and no compilation.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

import sparvar
from sparvar.evaluate.metrics import mse, psnr_of_mse, ssim
from sparvar.scale_plans import ModelInfo, Plan, dense_plan
from sparvar.zoo import LandscapeVAR, landscape

SEEDS = ((1000, "mountain"), (1001, "sea"), (1002, "fields"), (1003, "snow"))
GRIDS = {9: 24, 10: 32, 11: 40, 12: 48, 13: 64}


def base_plan(model: LandscapeVAR) -> Plan:
    """The all-dense plan that candidates are made from."""
    return dense_plan(
        [(side, side) for side in model.sides],
        ModelInfo(
            sites=[f"blocks.{i}.attn" for i in range(len(model.blocks))],
            heads=model.heads,
            head_dim=64,
            family="landscape",
            fingerprint=sparvar.fingerprint(model),
        ),
        name="landscape",
    )


def csla_table(windows: dict[int, int], first: int) -> dict[int, Any]:
    """CSLA entries for the scales from ``first`` on: ``windows`` per historical scale, as far as it exists."""
    return {k: {"windows": {h: w for h, w in windows.items() if h <= k}} for k in range(first, 14)}


def candidate(base: Plan, choice: dict[str, Any]) -> Plan:
    """The plan of one choice: the layers in ``cs4a_layers`` decide and map, the others are local.

    ``budgets`` and ``wide`` (windows of one target scale) override ``budget`` and ``windows`` where given.
    """
    layers = ["cs4a" if i in choice["cs4a_layers"] else "csla" for i in range(len(base.layers))]
    decision = choice["decision"] if choice["cs4a_layers"] else None
    by_scale = {int(k): share for k, share in choice.get("budgets", {}).items()}
    budgets = {
        k: {"budget": by_scale.get(k, choice["budget"]), "window": choice["window"]}
        for k in range(choice["decision"] + 1, 14)
        if choice["cs4a_layers"]
    }
    local = csla_table(choice["windows"], choice["first"])
    for k, windows in choice.get("wide", {}).items():
        if int(k) in local:
            local[int(k)] = {"windows": {int(h): side for h, side in windows.items()}}
    return base.replace(
        layers=layers,
        decision_scale=decision,
        cs4a=budgets,
        csla=local if "csla" in layers else {},
        sink_scales=choice.get("sinks", 5),
        tile=choice.get("tile", [8, 16]),
        index_map=choice.get("index_map", "relative"),
        output_correction=choice.get("correction", False),
        column_sum_stride=choice.get("stride", 1),
    )


def choices() -> Iterator[dict[str, Any]]:
    """A first, coarse round: split of layers, decision scale, budget, windows, first local scale, index map."""
    small = {8: 1, 9: 1, 10: 3, 11: 3, 12: 5, 13: 7}
    middle = {8: 3, 9: 3, 10: 3, 11: 5, 12: 7, 13: 9}
    huge = {7: 5, 8: 5, 9: 7, 10: 7, 11: 9, 12: 11, 13: 15}
    common = {"decision": 10, "budget": 0.1, "window": 7}
    for windows, first in itertools.product((small, middle, huge), (9, 10, 11)):
        yield {**common, "cs4a_layers": [], "windows": windows, "first": first}
    for count, (decision, budget) in itertools.product((2, 4, 6), ((10, 0.05), (10, 0.12), (11, 0.12))):
        chosen = {"cs4a_layers": list(range(count)), "decision": decision, "budget": budget, "window": 7}
        yield {**chosen, "windows": middle, "first": 10}
    for change in (
        {"index_map": "footprint"},
        {"index_map": "identity"},
        {"correction": True},
        {"window": 0},
        {"window": 11},
        {"tile": [8, 8]},
        {"stride": 2},
    ):
        yield {
            "cs4a_layers": list(range(6)),
            "decision": 10,
            "budget": 0.12,
            "window": 7,
            "windows": middle,
            "first": 10,
            **change,
        }


def refinements() -> Iterator[dict[str, Any]]:
    """A second round around the best of the first: more keys at the scales that later ones build on, fewer at the last.

    ``stride`` 2 sums columns over a quarter of the queries, which the first round found to cost nothing.
    """
    middle = {8: 3, 9: 3, 10: 3, 11: 5, 12: 7, 13: 9}
    wide12 = {7: 5, 8: 7, 9: 9, 10: 11, 11: 13, 12: 15}
    every = [0, 1, 2, 3, 4, 5]
    base = {"cs4a_layers": every, "decision": 10, "budget": 0.12, "window": 7, "windows": middle, "first": 10}
    base = {**base, "stride": 2}
    for eleven, twelve, last in (
        (0.3, 0.2, 0.12),
        (0.3, 0.2, 0.08),
        (0.3, 0.2, 0.04),
        (0.5, 0.2, 0.08),
        (0.5, 0.3, 0.06),
        (0.5, 0.3, 0.03),
        (0.7, 0.3, 0.05),
        (0.3, 0.12, 0.05),
        (0.2, 0.12, 0.06),
        (0.2, 0.1, 0.03),
    ):
        yield {**base, "budgets": {11: eleven, 12: twelve, 13: last}}
    for change in (
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}, "window": 11},
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}, "index_map": "footprint"},
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}, "correction": True},
        {"decision": 11, "budgets": {12: 0.12, 13: 0.06}},
        {"decision": 11, "budgets": {12: 0.2, 13: 0.03}},
        {"decision": 9, "budgets": {10: 0.4, 11: 0.3, 12: 0.2, 13: 0.08}},
        {"decision": 9, "budgets": {10: 0.5, 11: 0.4, 12: 0.2, 13: 0.05}},
        {"cs4a_layers": [0, 1, 2, 3], "first": 12, "budgets": {11: 0.3, 12: 0.18, 13: 0.06}},
        {"cs4a_layers": [], "first": 12},
        {"cs4a_layers": [], "first": 12, "wide": {12: wide12}},
    ):
        yield {**base, **change}
    # With the output correction fewer keys do.
    for change in (
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}, "sinks": 4},
        {"budgets": {11: 0.5, 12: 0.25, 13: 0.06}, "sinks": 4},
        {"budgets": {11: 0.4, 12: 0.3, 13: 0.1}, "sinks": 4},
        {"budgets": {11: 0.6, 12: 0.4, 13: 0.12}, "sinks": 4},
        {"decision": 11, "budgets": {12: 0.15, 13: 0.05}, "sinks": 4},
        {"decision": 11, "budgets": {12: 0.25, 13: 0.1}, "sinks": 4},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.04}},
        {"budgets": {11: 0.3, 12: 0.12, 13: 0.03}},
        {"budgets": {11: 0.15, 12: 0.08, 13: 0.03}},
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.02}},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.04}, "sinks": 4},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.06}},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.05}, "window": 0},
        {"budgets": {11: 0.2, 12: 0.1, 13: 0.03}, "window": 5},
        {"decision": 9, "budgets": {10: 0.3, 11: 0.2, 12: 0.12, 13: 0.05}},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.03}, "sinks": 6},
    ):
        yield {**base, "correction": True, **change}
    # Nor does it need the window. The shipped plan is the second of these.
    for change in (
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}},
        {"budgets": {11: 0.3, 12: 0.15, 13: 0.05}},
        {"budgets": {11: 0.2, 12: 0.12, 13: 0.06}},
        {"budgets": {11: 0.3, 12: 0.2, 13: 0.06}, "window": 3},
        {"budgets": {11: 0.25, 12: 0.15, 13: 0.05}, "window": 3},
    ):
        yield {**base, "correction": True, "sinks": 4, "window": 0, **change}


def measure(model: LandscapeVAR, references: list[torch.Tensor], cfg: float) -> dict[str, Any]:
    """PSNR (dB), SSIM and seconds of a generation over the seeds."""
    ratios, similarities, seconds = [], [], []
    for (seed, label), reference in zip(SEEDS, references, strict=True):
        started = time.perf_counter()
        image = model.generate([label], seed=seed, cfg=cfg)
        seconds.append(time.perf_counter() - started)
        ratios.append(psnr_of_mse(max(mse(image, reference), 1e-10)))
        similarities.append(ssim(image, reference))
    return {
        "psnr_db": statistics.mean(ratios),
        "psnr_db_min": min(ratios),
        "ssim": statistics.mean(similarities),
        "seconds": statistics.median(seconds),
    }


def draw(result: dict[str, Any], path: Path, chosen: str | None) -> None:
    """Share of attention computed against PSNR, the best trade-offs joined, the chosen digest marked.

    The share and not the seconds: it is exact, and a candidate takes too few generations for steady times.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["candidates"]
    figure, axes = plt.subplots(figsize=(7.5, 4.6), dpi=130)
    kinds = {
        "all layers local (CSLA)": [row for row in rows if not row["cs4a_layers"]],
        "all layers mapped (CS4A)": [row for row in rows if len(row["cs4a_layers"]) == 6],
        "some of each": [row for row in rows if 0 < len(row["cs4a_layers"]) < 6],
    }
    for (name, members), colour in zip(kinds.items(), ("#2a6f97", "#e07a5f", "#6a994e"), strict=True):
        x = [100 * row["cost"] for row in members]
        axes.scatter(x, [row["psnr_db"] for row in members], s=26, color=colour, alpha=0.8, label=name)

    def beaten(row: dict[str, Any]) -> bool:
        return any(other["cost"] < row["cost"] and other["psnr_db"] > row["psnr_db"] for other in rows)

    front = [row for row in rows if not beaten(row)]
    front.sort(key=lambda row: row["cost"])
    shares = [100 * row["cost"] for row in front]
    axes.plot(shares, [row["psnr_db"] for row in front], color="#444", linewidth=1, zorder=0, label="best trade-offs")
    for row in rows:
        if row["digest"] == chosen:
            place = (100 * row["cost"], row["psnr_db"])
            axes.scatter(*place, s=170, facecolors="none", edgecolors="black", linewidths=1.6, label="shipped")
    axes.axhline(32, color="#bbb", linestyle="--", linewidth=1)
    axes.set_xlabel("attention computed (% of the dense model's)")
    axes.set_ylabel("PSNR against dense (dB)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)


def main(
    out: Annotated[Path, typer.Option(help="JSON of all candidates.")],
    cfg: Annotated[float, typer.Option(help="Guidance.")] = 2.0,
    weights: Annotated[Path | None, typer.Option(help="Folder of other weights.")] = None,
    only: Annotated[Path | None, typer.Option(help="JSON list of choices instead of the built-in ones.")] = None,
    inner: Annotated[str, typer.Option(help="Inner compiler.")] = "eager",
    plot: Annotated[Path | None, typer.Option(help="PNG of attention computed against PSNR.")] = None,
    chosen: Annotated[str | None, typer.Option(help="Digest of the plan to mark in it.")] = None,
) -> None:
    """Measure every candidate and print the best trade-offs."""
    model = landscape(weights)
    base = base_plan(model)
    model.generate([SEEDS[0][1]], seed=0, cfg=cfg)
    references, dense = [], []
    for seed, label in SEEDS:
        started = time.perf_counter()
        references.append(model.generate([label], seed=seed, cfg=cfg))
        dense.append(time.perf_counter() - started)
    tried = [*choices(), *refinements()] if only is None else json.loads(only.read_text())
    rows = []
    for choice in track(tried, "candidates"):
        windows = {int(scale): side for scale, side in choice["windows"].items()}
        plan = candidate(base, {**choice, "windows": windows})
        sparvar.compile(model, plan, inner=inner)
        rows.append({**choice, "cost": plan.cost(), "digest": plan.digest, **measure(model, references, cfg)})
        sparvar.detach(model)
    rows.sort(key=lambda row: row["seconds"])
    result = {"seeds": SEEDS, "cfg": cfg, "dense_seconds": statistics.median(dense), "candidates": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    if plot is not None:
        draw(result, plot, chosen)
    best = -1.0
    print(f"dense {result['dense_seconds']:.2f} s")
    for row in rows:
        if row["psnr_db"] > best:
            best = row["psnr_db"]
            shown = {key: row[key] for key in row if key not in ("digest", "psnr_db_min")}
            print(json.dumps(shown))


if __name__ == "__main__":
    typer.run(main)
