"""Every published method alone, and mixtures, in one harness: time, PSNR, SSIM, FLOPs, memory, in one run."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparvar
from sparvar.calibrate import Subject, kv_statistics
from sparvar.scale_plans import Plan, ScaleWork, dense_plan, find_plan, load_plan
from sparvar.tools.common import load_landscape
from sparvar.tools.demo import inductor_dense
from sparvar.tools.measure import Generation, Spread, compare, ratio, timed_generation
from sparvar.tools.memory import live_peak, peak_memory
from sparvar.tools.methods import COMPRESSED, Method, compressed, published
from sparvar.zoo import CLASSES

DENSE = "dense"
INDUCTOR = "dense, Inductor"


@dataclass(frozen=True)
class MethodSettings:
    """What to run.

    Attributes:
        seeds: images of each method, with the next class and seed each.
        first_seed: of the first image; calibration's images have other ones.
        cfg: guidance strength.
        inner: compiler of the graphs.
        plans: more plans, by name: files, or names of shipped ones.
        only: names of methods; all where it is empty.
        skipping: also methods that skip scales.
        weights: folder with other weights of the shipped model.
    """

    seeds: int
    first_seed: int
    cfg: float
    inner: str
    plans: Mapping[str, str]
    only: tuple[str, ...]
    skipping: bool
    weights: Path | None = None


def methods_of(settings: MethodSettings, base: Plan, model: Any, say: Callable[[str], None]) -> list[Method]:
    """The methods to run, in order; the shipped plan and the given ones last."""
    found = published(base, settings.skipping)
    if not settings.only or set(COMPRESSED) & set(settings.only):
        say("what ScaleKV and HACK measure before they give out budgets")
        found += compressed(base, *kv_figures(base, model, settings.cfg))
    shipped = find_plan(base.model.fingerprint)
    if shipped is not None:
        found.append(Method("sparvar (shipped plan)", "calibrated", shipped))
    found += [Method(name, "given", load_plan(path)) for name, path in settings.plans.items()]
    return [method for method in found if not settings.only or method.name in settings.only]


def kv_figures(base: Plan, model: Any, cfg: float) -> tuple[list[dict[int, float]], list[list[float]]]:
    """Selectivity of layers and variance of heads, from one dense generation."""
    subject = Subject(
        model,
        lambda model, label, seed: model.generate(labels=[label], seed=seed, cfg=cfg)[0],
        base.schedule,
        base.model.heads,
        base.model.head_dim,
    )
    measured = kv_statistics(subject, [CLASSES[0]], seed=1)
    return measured.selectivity, measured.variance


def base_of(model: Any) -> Plan:
    """The all-dense plan of the shipped model."""
    shipped = find_plan(sparvar.fingerprint(model))
    names = [f"blocks.{number}.attn" for number in range(len(model.blocks))]
    heads = model.heads
    return dense_plan(
        model.schedule,
        names,
        heads=heads,
        head_dim=model.start.shape[-1] // heads,
        fingerprint=sparvar.fingerprint(model),
        family=shipped.model.family if shipped is not None else "",
    )


def run(settings: MethodSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything; ``say`` gets a line before each step."""
    plain = load_landscape(settings.weights)
    base = base_of(plain)
    methods = methods_of(settings, base, plain, say)
    models: dict[str, Any] = {DENSE: copy.deepcopy(plain), INDUCTOR: inductor_dense(copy.deepcopy(plain))}
    if settings.inner == "eager":
        del models[INDUCTOR]
    for method in methods:
        models[method.name] = sparvar.compile(copy.deepcopy(plain), method.plan, inner=settings.inner)
    for name, model in models.items():
        say(f"{name}: first generation, compiling")
        timed_generation(model, CLASSES[0], 0, settings.cfg)
    timed: dict[str, list[Generation]] = {name: [] for name in models}
    for number in range(settings.seeds):
        say(f"image {number + 1} of {settings.seeds}, by {len(models)} methods in turns")
        for name, model in models.items():
            seed = settings.first_seed + number
            timed[name].append(timed_generation(model, CLASSES[number % len(CLASSES)], seed, settings.cfg))
    memory = {}
    for name, model in models.items():
        say(f"{name}: memory")
        memory[name] = most_bytes(model, settings.cfg)
    plans = {method.name: method for method in methods}
    work = {name: sparvar.explain(models[name]).work for name in plans}
    rows = [_row(name, timed, plans.get(name), work.get(name, ())) | {"bytes": memory[name]} for name in models]
    return {
        "settings": {
            "seeds": settings.seeds,
            "first_seed": settings.first_seed,
            "cfg": settings.cfg,
            "inner": settings.inner,
        },
        "rows": rows,
    }


def most_bytes(model: Any, cfg: float) -> int | None:
    """Most bytes that tensors of one generation held at one moment, weights apart."""

    def generate() -> Generation:
        return timed_generation(model, CLASSES[0], 0, cfg)

    device = next(model.parameters()).device
    if device.type != "cuda":
        return live_peak(generate)
    with peak_memory(device) as peak:
        generate()
    return peak.bytes


def _row(
    name: str, timed: Mapping[str, list[Generation]], method: Method | None, work: tuple[ScaleWork, ...]
) -> dict[str, Any]:
    seconds = [one.seconds for one in timed[name]]
    dense = [one.seconds for one in timed[DENSE]]
    pairs = [compare(one.image, other.image) for one, other in zip(timed[name], timed[DENSE], strict=True)]
    row: dict[str, Any] = {
        "method": name,
        "source": method.source if method is not None else "",
        "seconds": Spread.of(seconds).as_dict(),
        "speedup": ratio(dense, seconds).as_dict(),
        "block_flops_kept": sum(one.drawn for one in work) / sum(one.dense for one in work) if work else 1.0,
    }
    if name != DENSE:
        # Equal images have no PSNR: None in the file.
        finite = [psnr for psnr, _ in pairs if psnr != float("inf")]
        row |= {
            "psnr_db_mean": statistics.mean(finite) if len(finite) == len(pairs) else None,
            "psnr_db_least": min(finite) if len(finite) == len(pairs) else None,
            "ssim_mean": statistics.mean(ssim for _, ssim in pairs),
            "ssim_least": min(ssim for _, ssim in pairs),
        }
    if method is not None:
        row |= {"plan": method.plan.digest, "skips": method.plan.skip is not None}
    return row


__all__ = ["MethodSettings", "base_of", "methods_of", "run"]
