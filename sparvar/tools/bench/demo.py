"""The demo's measurements: the same images dense and sparse, in turns, in one process.

Order: the sparse generation that compiles (the cold start), a dense one to warm up, timed pairs, peak memory, the
profile of attention. Every generation makes one image, with classifier-free guidance when ``cfg`` is not 1.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.compiler.config
from torch import Tensor

import sparvar
from sparvar.evaluate.attention_time import AttentionTime, attention_time
from sparvar.evaluate.machine import process_age
from sparvar.evaluate.memory import peak_memory
from sparvar.evaluate.metrics import psnr, ssim
from sparvar.evaluate.timing import Generation, Spread, ratio, timed_generation
from sparvar.progress import Progress
from sparvar.scale_plans import Plan
from sparvar.tools.reports.kept_columns import AttentionRecorder, KeptColumns, drawn_layers, kept_columns
from sparvar.zoo import LandscapeVAR, ShapedVAR

Baseline = Literal["eager", "inductor"]
Blocks = TypeVar("Blocks", LandscapeVAR, ShapedVAR)


@dataclass(frozen=True)
class DemoSettings:
    """What to generate and how often.

    Attributes:
        classes: class of each image.
        seed: of the first image; image i has ``seed + i``.
        cfg: guidance strength.
        inner: compiler of the rewritten graphs.
        baselines: dense variants to time; the first one is the reference of every figure.
        runs: timed generations of each image and variant.
    """

    classes: tuple[str, ...]
    seed: int
    cfg: float
    inner: str
    baselines: tuple[Baseline, ...]
    runs: int


@dataclass
class DemoImage:
    """One image, dense and sparse."""

    label: str
    seed: int
    dense: Tensor
    sparse: Tensor
    psnr_db: float
    ssim: float


@dataclass
class DemoResult:
    """Everything measured, by variant: ``eager``, ``inductor``, ``sparse``."""

    settings: DemoSettings
    plan: Plan
    device: torch.device
    images: list[DemoImage] = field(default_factory=list)
    timed: dict[str, list[Generation]] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)
    peak_method: str = ""
    attention: AttentionTime | None = None
    columns: list[KeptColumns] = field(default_factory=list)
    rewritten_sites: int = 0
    mapping_seconds: float = 0.0
    first_image_seconds: float = 0.0
    cold_start: dict[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return self.settings.baselines[0]

    def seconds(self, variant: str) -> list[float]:
        """Of every timed generation."""
        return [one.seconds for one in self.timed[variant]]

    def median(self, variant: str) -> float:
        """Median of its seconds."""
        return statistics.median(self.seconds(variant))

    def speedup(self, baseline: str) -> Spread:
        """Spread of the pair-by-pair ratios against a baseline."""
        return ratio(self.seconds(baseline), self.seconds("sparse"))


class ScaleProgress(Progress, Protocol):
    """A `Progress` whose steps are generations, and that is told of their scales, too."""

    def scale(self, scale: int) -> None:
        """The 0-based scale of the generation under way is done."""
        ...


def generations(settings: DemoSettings) -> int:
    """How many generations a demo makes, for its progress bar."""
    variants = 1 + len(settings.baselines)
    return variants * (2 + len(settings.classes) * settings.runs) + 4


class Demo:
    """One run of the demo on one model."""

    def __init__(self, model: LandscapeVAR, plan: Plan | str, settings: DemoSettings, progress: ScaleProgress) -> None:
        self.settings, self.progress = settings, progress
        self.models: dict[str, Any] = {}
        if "inductor" in settings.baselines:
            self.models["inductor"] = inductor_dense(model)
        self.models["eager"] = self.models["sparse"] = sparvar.compile(model, plan=plan, inner=settings.inner)
        attachment = sparvar.attachment_of(model)
        assert attachment is not None
        self.attachment = attachment
        self.result = DemoResult(settings, attachment.plan, model.start.device)

    def generate(self, variant: str, number: int, text: str) -> Generation:
        """One generation of image ``number`` by ``eager`` or ``inductor`` (dense), or ``sparse``."""
        self.progress.step(text)
        # The dense model is the attached one, which runs its own forwards.
        with contextlib.nullcontext() if variant == "sparse" else self.attachment.paused():
            return timed_generation(
                self.models[variant],
                self.settings.classes[number],
                self.settings.seed + number,
                self.settings.cfg,
                self.progress.scale,
            )

    def run(self) -> DemoResult:
        """Measure everything."""
        recorder = self._warm_up()
        self._pairs()
        self._memory()
        self._attention()
        self.result.columns = kept_columns(self.result.plan, recorder)
        return self.result

    def _warm_up(self) -> AttentionRecorder:
        result = self.result
        started = time.perf_counter()
        first = self.generate("sparse", 0, "first sparse image: compiling")
        age = process_age()
        result.cold_start["sparse"] = first.seconds
        result.first_image_seconds = age if age is not None else time.perf_counter() - started
        session = self.attachment.last
        assert session is not None  # a generation that did not finish raises
        result.rewritten_sites = sum(kind != "dense" for kind in session.ran.values())
        recorder = AttentionRecorder(result.plan, list(drawn_layers(result.plan).values()))
        with recorder:
            self.generate("eager", 0, "dense, warm-up")
        if "inductor" in self.models:
            result.cold_start["inductor"] = self.generate("inductor", 0, "dense with Inductor: compiling").seconds
        return recorder

    def _pairs(self) -> None:
        result, variants = self.result, (*self.settings.baselines, "sparse")
        result.timed = {variant: [] for variant in variants}
        mapping: list[float] = []
        for number, label in enumerate(self.settings.classes):
            made: dict[str, Tensor] = {}
            for run in range(self.settings.runs):
                for variant in variants:
                    text = f"image {number + 1} of {len(self.settings.classes)}, {label}, {_name(variant)}"
                    timed = self.generate(variant, number, f"{text}, run {run + 1} of {self.settings.runs}")
                    made[variant] = timed.image
                    result.timed[variant].append(timed)
                mapping.append(self.attachment.last.seconds if self.attachment.last is not None else 0.0)
            # The reference of the quality figures is the model's own code.
            dense = made["eager"] if "eager" in made else self.generate("eager", number, f"{label}, reference").image
            sparse, seed = made["sparse"], self.settings.seed + number
            result.images.append(DemoImage(label, seed, dense, sparse, psnr(sparse, dense), ssim(sparse, dense)))
        result.mapping_seconds = statistics.median(mapping)

    def _memory(self) -> None:
        for variant in (*self.settings.baselines, "sparse"):
            with peak_memory(self.result.device) as peak:
                self.generate(variant, 0, f"peak memory, {_name(variant)}")
            self.result.peak[variant] = peak.bytes
            self.result.peak_method = peak.method

    def _attention(self) -> None:
        def profiled(variant: str) -> Callable[[], object]:
            return lambda: self.generate(variant, 0, f"profile of attention, {_name(variant)}")

        self.result.attention = attention_time(
            self.result.plan, profiled("eager"), profiled("sparse"), self.result.device
        )


def _name(variant: str) -> str:
    return {"sparse": "sparse", "eager": "dense", "inductor": "dense with Inductor"}[variant]


def inductor_dense(model: LandscapeVAR) -> LandscapeVAR:
    """A dense copy of an unattached model whose blocks are compiled by Inductor, one graph per scale."""
    return compile_blocks(copy.deepcopy(model))


def compile_blocks(model: Blocks) -> Blocks:
    """The model itself, its blocks compiled by Inductor, one graph per scale."""
    config = torch.compiler.config
    # Its default limit of 8 graphs would run most scales eagerly without a word.
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4096)
    for block in model.blocks:
        block.compile(dynamic=False)
    return model
