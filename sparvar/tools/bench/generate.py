"""Benchmark of whole generations: eager dense, Inductor dense and sparvar, in turns, over several seeds."""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparvar
from sparvar.errors import SparvarError, message
from sparvar.evaluate.attention_time import attention_time
from sparvar.evaluate.metrics import psnr, ssim
from sparvar.evaluate.timing import Generation, Spread, decode_median, ratio, scale_medians, timed_generation
from sparvar.progress import Progress
from sparvar.runtime import Hook
from sparvar.tools.bench.demo import inductor_dense
from sparvar.zoo import CLASSES, landscape

VARIANTS = ("eager", "inductor", "sparse")


@dataclass(frozen=True)
class GenerateSettings:
    """What to run: ``seeds`` images, each with the next class and seed, by every one of ``variants``."""

    seeds: int
    cfg: float
    plan: str
    inner: str
    variants: tuple[str, ...]
    weights: Path | None
    memory: bool


def build(settings: GenerateSettings, variant: str) -> Any:
    """A model for one variant, with its own parameters and modules."""
    return prepare(landscape(settings.weights), settings, variant)


def prepare(model: Any, settings: GenerateSettings, variant: str) -> Any:
    """Turn a model into one of the variants; an eager one stays as it is."""
    if variant == "sparse":
        return sparvar.compile(model, plan=settings.plan, inner=settings.inner)
    return inductor_dense(model) if variant == "inductor" else model


def run(settings: GenerateSettings, progress: Progress) -> dict[str, Any]:
    """The content of a result file."""
    plain = landscape(settings.weights)
    models = {variant: prepare(copy.deepcopy(plain), settings, variant) for variant in settings.variants}
    warm: dict[str, float] = {}
    for variant, model in models.items():
        progress.step(f"{variant}: first generation, compiling")
        started = time.perf_counter()
        timed_generation(model, CLASSES[0], 0, settings.cfg)
        warm[variant] = time.perf_counter() - started
    timed: dict[str, list[Generation]] = {variant: [] for variant in models}
    for seed in range(settings.seeds):
        for variant, model in models.items():
            progress.step(f"{variant}: seed {seed}")
            timed[variant].append(timed_generation(model, CLASSES[seed % len(CLASSES)], seed, settings.cfg))
    attachment = sparvar.attachment_of(models["sparse"])
    assert attachment is not None and attachment.last is not None
    plan = attachment.plan
    seconds = {variant: [one.seconds for one in many] for variant, many in timed.items()}
    result: dict[str, Any] = {
        "settings": {"seeds": settings.seeds, "cfg": settings.cfg, "inner": settings.inner, "pixels": 512},
        "plan": {"name": plan.name, "digest": plan.digest, "planned_sites": plan.planned_sites(), "cost": plan.cost()},
        "rewritten_sites": sum(kind != "dense" for kind in attachment.last.ran.values()),
        "seconds": {variant: Spread.of(values).as_dict() for variant, values in seconds.items()},
        "speedup": {
            variant: ratio(values, seconds["sparse"]).as_dict()
            for variant, values in seconds.items()
            if variant != "sparse"
        },
        "first_generation_seconds": warm,
        "seconds_per_scale": {variant: scale_medians(many) for variant, many in timed.items()},
        "decode_seconds": {variant: decode_median(many) for variant, many in timed.items()},
        "quality": quality(timed),
    }
    progress.step("sparse: time outside kernels")
    result["outside_kernels"] = outside_kernels(models["sparse"], settings.cfg)
    if (
        plan.pruning is None and plan.guidance is None and plan.skip is None
    ):  # else calls do not pair up with dense ones
        progress.step("profile of attention")
        spent = attention_time(
            plan,
            lambda: plain.generate(labels=[CLASSES[0]], seed=0, cfg=settings.cfg),
            lambda: models["sparse"].generate(labels=[CLASSES[0]], seed=0, cfg=settings.cfg),
            plain.start.device,
        )
        result["attention"] = {
            "speedup": spent.speedup,
            "speedup_with_decision": spent.speedup_with_decision,
            "dense_seconds": spent.all_dense,
            "sparse_sites_dense_seconds": spent.dense,
            "sparse_sites_seconds": spent.sparse,
            "deciding_sites_dense_seconds": spent.decide_dense,
            "deciding_sites_seconds": spent.decide,
        }
    if settings.memory:
        models.clear()
        result["peak_memory"] = {}
        for variant in settings.variants:
            progress.step(f"{variant}: peak memory in its own process")
            result["peak_memory"][variant] = memory_of(settings, variant)
    return result


def quality(timed: dict[str, list[Generation]]) -> dict[str, Any]:
    """PSNR and SSIM of every variant's images against the first variant's, per seed and in the middle."""
    reference = next(iter(timed))
    found: dict[str, Any] = {"reference": reference}
    for variant, many in timed.items():
        if variant == reference:
            continue
        pairs = [(one.image, other.image) for one, other in zip(many, timed[reference], strict=True)]
        decibels, similarities = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
        found[variant] = {
            "psnr_db": decibels,
            "ssim": similarities,
            "psnr_db_median": statistics.median(decibels),
            "psnr_db_least": min(decibels),
            "ssim_median": statistics.median(similarities),
            "ssim_least": min(similarities),
        }
    return found


OUTSIDE_ROUNDS = 5
"""Generations of which the one with the middle share is told."""


class _CallTimes(Hook):
    """Seconds of every call of a site, in their order."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def site_call(self, layer: int, proceed: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        out = proceed()
        self.seconds.append(time.perf_counter() - started)
        return out


def outside_kernels(model: Any, cfg: float) -> dict[str, float]:
    """An upper bound of the time that a sparse generation spends on guards, dispatch and index mapping.

    Every call of a site costs the same Python, guard and launch work whatever its scale. At scale 1 it computes on a
    single token, so the median time of a call there bounds that work from above; times the number of calls, plus the
    time that the generation counts for selecting and mapping indices, over the whole generation.
    """
    attachment = sparvar.attachment_of(model)
    assert attachment is not None
    timed = _CallTimes()
    layers = len(attachment.plan.layers)
    found: list[dict[str, float]] = []
    with attachment.hooked(timed):
        for _ in range(OUTSIDE_ROUNDS):
            calls = timed.seconds = []
            whole = timed_generation(model, CLASSES[0], 0, cfg).seconds
            per_call = statistics.median(calls[:layers])
            mapping = attachment.last.seconds if attachment.last is not None else 0.0
            found.append(
                {
                    "calls": len(calls),
                    "seconds_per_call": per_call,
                    "dispatch_seconds": per_call * len(calls),
                    "mapping_seconds": mapping,
                    "generation_seconds": whole,
                    "share": (per_call * len(calls) + mapping) / whole,
                }
            )
    return sorted(found, key=lambda one: one["share"])[len(found) // 2]


def memory_of(settings: GenerateSettings, variant: str) -> dict[str, Any]:
    """Peak memory of the second generation of a variant, in a process of its own.

    Raises:
        SparvarError: that process failed.
    """
    command = [
        sys.executable,
        "-m",
        "sparvar.tools.bench.memory_worker",
        variant,
        settings.plan,
        settings.inner,
        str(settings.cfg),
    ]
    if settings.weights is not None:
        command.append(str(settings.weights))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SparvarError(message(f"memory of {variant}", "be measured in a process of its own", last[0]))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
