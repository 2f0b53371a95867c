"""The memory curve of KV compression: images against dense ones of the same seed at ever fewer keys, by every method.

``python benchmarks/kv.py --out benchmarks/results/kv-cpu.json --plot docs/images/kv-compression.png``

The model runs dense attention over what its caches hold, and nothing else is left out. Every result is written as soon
as it is there; a run that finds the file goes on with what is missing in it.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import sparvar
from sparvar.calibrate import load_subject
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.calibrate.measure.kv_statistics import kv_statistics
from sparvar.evaluate.machine import machine
from sparvar.evaluate.memory import live_peak
from sparvar.evaluate.metrics import mse, psnr_of_mse
from sparvar.models.subject import Subject
from sparvar.scale_plans import KVCompression, Plan, hack, held_share, local, peak_share, scalekv, shipped_plans
from sparvar.tools.console import as_json

PROMPTS = ("mountain", "sea", "valley", "city")
SEED = 50
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
VARIANTS: dict[str, dict[str, Any]] = {
    "scalekv": {"method": "scalekv"},
    "hack": {"method": "hack"},
    "local": {"method": "local"},
    "scalekv-even": {"method": "scalekv", "drafting": 0},
    "scalekv-even-16": {"method": "scalekv", "drafting": 0, "queries": 16},
    "scalekv-even-bf16": {"method": "scalekv", "drafting": 0, "store": "bfloat16"},
    "local-bf16": {"method": "local", "store": "bfloat16"},
}


def compression(base: Plan, variant: str, share: float, found: dict[str, Any]) -> KVCompression:
    """A variant that holds at most ``share`` of the bytes of whole caches between two scales."""
    options = dict(VARIANTS[variant])
    method = options.pop("method")
    budget = int(base.keys(base.scales) * share * (2 if options.get("store") == "bfloat16" else 1))
    if method == "local":
        return local(base, budget, **options)
    if method == "hack":
        return hack(base, found["variance"], budget, **options)
    selectivity = [{int(scale): value for scale, value in layer.items()} for layer in found["selectivity"]]
    return scalekv(base, selectivity, budget, **options)


class Curve:
    """Measurements at one size of the shipped model, kept in a JSON file."""

    def __init__(self, out: Path, pixels: int) -> None:
        whole = load_subject("zoo:landscape")
        assert whole.resize is not None
        self.subject: Subject = whole if pixels == 512 else whole.resize(pixels, pixels)
        self.base = base_plan(self.subject)
        self.out, self.pixels = out, pixels
        content = json.loads(out.read_text()) if out.exists() else {}
        self.content: dict[str, Any] = content or {"benchmark": "kv", "format": 1, "sizes": {}}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.content |= {"device": device, "machine": machine(), "prompts": PROMPTS, "seed": SEED}
        self.found: dict[str, Any] = self.content["sizes"].setdefault(str(pixels), {"points": {}})
        self.images: dict[int, Tensor] = {}

    def save(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(as_json(self.content))

    def statistics(self) -> None:
        if "selectivity" not in self.found:
            measured = kv_statistics(self.subject, ["fields"], seed=40)
            self.found |= {"selectivity": measured.selectivity, "variance": measured.variance}
            self.save()

    def dense(self, number: int) -> Tensor:
        if number not in self.images:
            self.images[number] = self.subject.draw(self.subject.model, PROMPTS[number], SEED + number)
        return self.images[number]

    def point(self, name: str, plan: Plan, images: int) -> None:
        """Measure a plan on as many images as it lacks."""
        row = self.found["points"].get(name)
        if row is None or row["digest"] != plan.digest:
            shares = {"held": held_share(plan), "peak": peak_share(plan)} if plan.kv is not None else {}
            kv = None if plan.kv is None else plan.kv.model_dump(mode="json")
            row = self.found["points"][name] = {"digest": plan.digest, **shares, "kv": kv, "psnr_db": [], "seconds": []}
        while len(row["psnr_db"]) < images:
            number = len(row["psnr_db"])
            reference = self.dense(number)
            sparvar.compile(self.subject.model, plan, inner="eager")
            started = time.perf_counter()
            image = self.subject.draw(self.subject.model, PROMPTS[number], SEED + number)
            row["seconds"].append(time.perf_counter() - started)
            sparvar.detach(self.subject.model)
            row["psnr_db"].append(psnr_of_mse(max(mse(image, reference), 1e-12)))
            self.save()
            print(f"{self.pixels} {name}: {row['psnr_db'][-1]:.2f} dB, {row['seconds'][-1]:.1f} s", flush=True)

    def memory(self, name: str, plan: Plan | None) -> None:
        """Bytes of the caches between scales, and of all tensors at the worst moment, of one generation."""
        model: Any = self.subject.model
        if plan is not None:
            sparvar.compile(model, plan, inner="eager")
        held: list[int] = []

        def look(_: int) -> None:
            caches = [part for block in model.blocks for part in (block.attn.cached_k, block.attn.cached_v)]
            storages = {cache.untyped_storage().data_ptr(): cache.untyped_storage().nbytes() for cache in caches}
            held.append(sum(storages.values()))

        def generate() -> None:
            model.generate([PROMPTS[0]], seed=SEED, scale_schedule=self.base.schedule, on_scale=look)

        peak = live_peak(generate)
        sparvar.detach(model)
        row = {"cache_bytes": max(held), "live_bytes": peak}
        self.found.setdefault("memory", {})[name] = row
        self.save()
        print(f"{self.pixels} {name}: " + ", ".join(f"{key} {value / 2**20:.0f} MiB" for key, value in row.items()))


def draw(content: dict[str, Any], path: Path) -> None:
    """Memory against PSNR, a line per variant, a panel per size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = {size: each for size, each in content["sizes"].items() if each["points"]}
    figure, panels = plt.subplots(1, len(sizes), figsize=(6.2 * len(sizes), 4.8), dpi=130, sharey=True, squeeze=False)
    colours = dict(zip(VARIANTS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for axes, (size, each) in zip(panels[0], sorted(sizes.items(), key=lambda pair: -int(pair[0])), strict=True):
        for variant in VARIANTS:
            rows = [row for name, row in each["points"].items() if name.split(" ")[0] == variant and row["psnr_db"]]
            rows.sort(key=lambda row: row["held"])
            means = [statistics.fmean(row["psnr_db"]) for row in rows]
            if rows:
                held = [1 / row["held"] for row in rows]
                style = "--" if "bf16" in variant else "-"
                axes.plot(held, means, "o" + style, ms=4, color=colours[variant], label=variant)
        plain = each["points"].get("plan")
        if plain and plain["psnr_db"]:
            level = statistics.fmean(plain["psnr_db"])
            axes.axhline(level, color="#444", lw=1, label="shipped sparse plan, caches whole")
            axes.axhline(level - 1, color="#999", lw=1, ls=":", label="1 dB below")
        axes.set_xscale("log", base=2)
        ticks = [1 / share for share in SHARES]
        axes.set_xticks(ticks, [f"1/{round(tick)}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("KV memory held between scales, of whole caches")
        axes.set_title(f"{size} x {size} pixels")
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("PSNR against dense, same seed (dB)")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main(
    out: Annotated[Path, typer.Option(help="JSON of all points; a run goes on with what is missing.")],
    pixels: Annotated[int, typer.Option(help="Side of the image.")] = 512,
    images: Annotated[int, typer.Option(min=0, max=len(PROMPTS), help="Images per point.")] = 4,
    only: Annotated[str, typer.Option(help="Variants, separated by commas; empty for all.")] = "",
    denominators: Annotated[str, typer.Option(help="1/share of KV memory, separated by commas.")] = "2,4,8,16",
    memory: Annotated[bool, typer.Option(help="Measure the bytes of tensors too, in a generation of its own.")] = False,
    plan: Annotated[bool, typer.Option(help="Measure the shipped sparse plan too.")] = True,
    plot: Annotated[Path | None, typer.Option(help="PNG of the curve.")] = None,
) -> None:
    """Measure every variant at every share of memory, then draw the curve."""
    curve = Curve(out, pixels)
    curve.statistics()
    if plan and images:
        shipped = shipped_plans()["landscape"]
        carried = sparvar.scale_plans.transfer(shipped, curve.base.schedule)
        curve.point("plan", carried, images)
    for denominator in map(int, denominators.split(",")):
        for variant in only.split(",") if only else VARIANTS:
            kv = compression(curve.base, variant, 1 / denominator, curve.found)
            curve.point(f"{variant} 1/{denominator}", curve.base.replace(kv=kv), images)
            if memory:
                curve.memory(f"{variant} 1/{denominator}", curve.base.replace(kv=kv))
    if memory:
        curve.memory("eager", None)
        curve.memory("all dense", curve.base)
    if plot is not None:
        draw(curve.content, plot)


if __name__ == "__main__":
    typer.run(main)
