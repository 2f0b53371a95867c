"""Every published method alone, and mixtures, in one harness: time, quality, FLOPs, memory, in one run."""

from __future__ import annotations

import copy
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparvar
from sparvar.calibrate import KVStatistics, Subject, kv_statistics
from sparvar.errors import OptionError, message
from sparvar.evaluate.memory import live_peak, peak_memory
from sparvar.evaluate.metrics import psnr, ssim
from sparvar.evaluate.timing import Generation, Spread, ratio, timed_generation
from sparvar.progress import Progress
from sparvar.scale_plans import ModelInfo, Plan, ScaleWork, dense_plan, find_plan, load_plan
from sparvar.tools.bench.demo import compile_blocks
from sparvar.tools.bench.pair import SOURCE, ImagePair, Pair, pairs
from sparvar.tools.bench.published_methods import COMPRESSED, SKIPPING, Method, compressed, published
from sparvar.zoo import CLASSES, landscape

DENSE = "dense"
INDUCTOR = "dense, Inductor"


@dataclass(frozen=True)
class MethodSettings:
    """What to run.

    Attributes:
        seeds: generations of each method, with the next seed each.
        first_seed: of the first one; calibration's images have other ones.
        cfg: guidance strength; 1 turns it off, and then no method leaves it out.
        inner: compiler of the graphs.
        only: names of methods; all where it is empty.
        skipping: also methods that skip scales.
        refiner: what CoDe draws the rest with, folder of weights or name of a shape; no CoDe if None.
        handover: the last scale before that; CoDe's share of the scales if None.
    """

    seeds: int
    first_seed: int
    cfg: float
    inner: str
    only: tuple[str, ...]
    skipping: bool
    refiner: str | None = None
    handover: int | None = None


class Bench(ABC):
    """A model that methods are compared on.

    Attributes:
        base: its all-dense plan.
        model: itself, unattached.
    """

    base: Plan
    model: Any

    @abstractmethod
    def copy(self) -> Any:
        """One more such model."""

    @abstractmethod
    def generate(self, model: Any, plan: Plan | None) -> object:
        """One generation that is not timed, always the same; ``plan`` is what the model is compiled with."""

    @abstractmethod
    def draw(self, model: Any, plan: Plan | None, number: int) -> Generation:
        """Generation ``number``, timed."""

    @abstractmethod
    def quality(self, found: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """What a row says of generations beside those of the dense model."""

    @abstractmethod
    def kv_statistics(self) -> KVStatistics:
        """What ScaleKV and HACK measure, from one dense generation."""

    def further(self) -> list[Method]:
        """Plans beside the published methods."""
        return []

    def pairs(self, settings: MethodSettings) -> dict[str, Pair]:
        """CoDe's rows, by name; none without a refiner."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What a result file says of the model."""
        return {}


class ImageBench(Bench):
    """The shipped model: its images are compared.

    Args:
        settings: of the run.
        plans: more plans to compare, by name: files, or names of shipped ones.
        weights: folder with other weights.
    """

    def __init__(self, settings: MethodSettings, plans: Mapping[str, str], weights: Path | None = None) -> None:
        self.model = landscape(weights)
        self.base = base_of(self.model)
        self.plans, self.cfg, self.first_seed = plans, settings.cfg, settings.first_seed

    def copy(self) -> Any:
        return copy.deepcopy(self.model)

    def generate(self, model: Any, plan: Plan | None) -> object:
        return timed_generation(model, CLASSES[0], 0, self.cfg)

    def draw(self, model: Any, plan: Plan | None, number: int) -> Generation:
        return timed_generation(model, CLASSES[number % len(CLASSES)], self.first_seed + number, self.cfg)

    def quality(self, found: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        pairs = [(one.image, other.image) for one, other in zip(found, dense, strict=True)]
        decibels, similarities = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
        finite = max(decibels) < math.inf  # equal images have no PSNR: None in the file
        return {
            "psnr_db_mean": statistics.mean(decibels) if finite else None,
            "psnr_db_least": min(decibels) if finite else None,
            "ssim_mean": statistics.mean(similarities),
            "ssim_least": min(similarities),
        }

    def kv_statistics(self) -> KVStatistics:
        subject = Subject(
            self.model,
            lambda model, label, seed: model.generate(labels=[label], seed=seed, cfg=self.cfg)[0],
            self.base.schedule,
            self.base.model.heads,
            self.base.model.head_dim,
        )
        return kv_statistics(subject, [CLASSES[0]], seed=1)

    def pairs(self, settings: MethodSettings) -> dict[str, Pair]:
        if settings.refiner is None:
            return {}
        small = landscape(Path(settings.refiner))
        plans = (self.base, base_of(small))
        given = (settings.inner, settings.handover, settings.skipping)
        return pairs(ImagePair, self.copy, lambda: copy.deepcopy(small), plans, *given)

    def further(self) -> list[Method]:
        shipped = find_plan(self.base.model.fingerprint)
        found = [] if shipped is None else [Method("sparvar (shipped plan)", "calibrated", shipped)]
        return found + [Method(name, "given", load_plan(path)) for name, path in self.plans.items()]


def methods_of(settings: MethodSettings, bench: Bench, progress: Progress, others: Sequence[str] = ()) -> list[Method]:
    """The methods to run, in order; the shipped plan and the given ones last. ``others`` are rows that are no plans.

    Raises:
        OptionError: one that is asked for does not exist.
    """
    found, wanted = published(bench.base, settings.skipping), settings.only
    names = [*COMPRESSED, *(f"{name}{SKIPPING}" for name in COMPRESSED if settings.skipping)]
    if not wanted or set(names) & set(wanted):
        progress.step("what ScaleKV and HACK measure before they give out budgets")
        measured = bench.kv_statistics()
        found += compressed(bench.base, measured.selectivity, measured.variance, settings.skipping)
    found += bench.further()
    if settings.cfg == 1.0:
        without = ", ".join(method.name for method in found if method.plan.guidance is not None)
        progress.step(f"without guidance there is none to leave out, so these do not run: {without}")
        found = [method for method in found if method.plan.guidance is None]
    known = [*(method.name for method in found), *others]
    for name in wanted:
        if name not in known:
            must = f"be one of {'; '.join(dict.fromkeys([*known, *names]))}"
            raise OptionError(message("--only", must, repr(name), "--skipping, --refiner and guidance add some"))
    return [method for method in found if not wanted or method.name in wanted]


def base_of(model: Any) -> Plan:
    """The all-dense plan of the shipped model."""
    shipped = find_plan(sparvar.fingerprint(model))
    names = [f"blocks.{number}.attn" for number in range(len(model.blocks))]
    heads = model.heads
    return dense_plan(
        model.schedule,
        ModelInfo(
            sites=names,
            heads=heads,
            head_dim=model.start.shape[-1] // heads,
            fingerprint=sparvar.fingerprint(model),
            family=shipped.model.family if shipped is not None else "",
        ),
    )


def run(settings: MethodSettings, bench: Bench, progress: Progress) -> dict[str, Any]:
    """The content of a result file."""
    paired = bench.pairs(settings)
    methods = {method.name: method for method in methods_of(settings, bench, progress, tuple(paired))}
    plans: dict[str, Plan | None] = {DENSE: None, INDUCTOR: None}
    models: dict[str, Any] = {DENSE: bench.copy()}
    if settings.inner != "eager":
        models[INDUCTOR] = compile_blocks(bench.copy())
    for name, method in methods.items():
        models[name] = sparvar.compile(bench.copy(), method.plan, inner=settings.inner)
        plans[name] = method.plan
    paired = {name: pair for name, pair in paired.items() if not settings.only or name in settings.only}
    models |= paired
    plans |= {name: pair.plan for name, pair in paired.items()}
    for name, model in models.items():
        progress.step(f"{name}: first generation, compiling")
        bench.generate(model, plans[name])
    timed: dict[str, list[Generation]] = {name: [] for name in models}
    for number in range(settings.seeds):
        progress.step(f"generation {number + 1} of {settings.seeds}, by {len(models)} methods in turns")
        for name, model in models.items():
            timed[name].append(bench.draw(model, plans[name], number))
    rows = []
    for name, model in models.items():
        progress.step(f"{name}: memory")
        work = sparvar.explain(model).work if name in methods else ()
        row = _row(name, timed, methods.get(name), work)
        if name in paired:
            row |= _of_pair(paired[name])
        if name != DENSE:
            row |= bench.quality(timed[name], timed[DENSE])
        rows.append(row | {"bytes": most_bytes(bench, model, plans[name])})
    stated = {key: getattr(settings, key) for key in ("seeds", "first_seed", "cfg", "inner")}
    return {"settings": stated | bench.settings(), "rows": rows}


def most_bytes(bench: Bench, model: Any, plan: Plan | None) -> int | None:
    """Most bytes that tensors of one generation held at one moment, weights apart."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return live_peak(lambda: bench.generate(model, plan))
    with peak_memory(device) as peak:
        bench.generate(model, plan)
    return peak.bytes


def _row(
    name: str, timed: Mapping[str, list[Generation]], method: Method | None, work: tuple[ScaleWork, ...]
) -> dict[str, Any]:
    seconds = [one.seconds for one in timed[name]]
    dense = [one.seconds for one in timed[DENSE]]
    kept = sum(one.drawn for one in work) / sum(one.dense for one in work) if work else 1.0
    row: dict[str, Any] = {
        "method": name,
        "source": method.source if method is not None else "",
        "seconds": Spread.of(seconds).as_dict(),
        "speedup": ratio(dense, seconds).as_dict(),
        "block_flops_kept": kept,
        "promised_speedup": 1 / kept,
    }
    if method is not None:
        row |= {"plan": method.plan.digest, "skips": method.plan.skip is not None}
    return row


def _of_pair(pair: Pair) -> dict[str, Any]:
    kept = pair.kept
    return {
        "source": SOURCE.format(pair.handover, pair.plan.drawn),
        "block_flops_kept": kept,
        "promised_speedup": 1 / kept,
        "skips": pair.plan.skip is not None,
    }
