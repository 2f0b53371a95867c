"""Whole generations of the model under a plan, timed and compared with the model's own, each kept in the journal."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparvar.backend import attachment_of, compile, detach
from sparvar.calibrate.candidates.space import Choice, Space
from sparvar.calibrate.fit.difficulty import detail
from sparvar.calibrate.fit.predict import candidates_of, relative_errors
from sparvar.calibrate.journal import Journal
from sparvar.calibrate.measure.observe import Observer, as_record, merged
from sparvar.calibrate.measure.pruning import PruningSums, representative_scale
from sparvar.errors import OptionError, SessionError, SparvarError, message
from sparvar.heap import mmap_large_blocks
from sparvar.kernels import trim_memory
from sparvar.models.subject import Subject
from sparvar.scale_plans import Plan

TIMED = 4
"""Generations of which one may go untimed, because it compiles; of fewer each is timed, after one that warms up."""
STAGES = {"observe": 0, "probe": 0, "check": 1000, "held": 2000}
"""Stage to first seed: what is observed, checked and held out never shares a seed."""
LEAST_MSE = 1e-10
"""Images that are equal count as 100 dB."""
SSIM_WINDOW = 11
"""Side of torchmetrics' Gaussian window, the least side of an image."""


@dataclass(frozen=True)
class Measured:
    """Generations of one plan: image MSE, seconds, and SSIM where torchmetrics is installed, of each.

    Attributes:
        mse: against the dense image.
        seconds: of every generation in which nothing was compiled.
        ssim: against the dense image; empty where it was not measured.
        took: seconds of all sites together per scale, median over generations; empty where they were not timed.
    """

    mse: tuple[float, ...]
    seconds: tuple[float, ...]
    ssim: tuple[float, ...] = ()
    took: Mapping[int, float] = field(default_factory=dict)

    @property
    def psnr(self) -> list[float]:
        """PSNR of each image against the dense one, dB."""
        return [-10 * math.log10(value) for value in self.mse]

    @property
    def mean_psnr(self) -> float:
        """Mean of dB, the figure that budgets are about."""
        return statistics.mean(self.psnr)

    @property
    def mean_ssim(self) -> float | None:
        """Mean SSIM, or None where it was not measured."""
        return statistics.mean(self.ssim) if self.ssim else None

    @property
    def damage(self) -> float:
        """Geometric mean of the MSE, which is the mean PSNR on the solver's scale."""
        return float(10 ** (-self.mean_psnr / 10))

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "psnr_db": self.psnr,
            "psnr_db_mean": self.mean_psnr,
            "psnr_db_least": min(self.psnr),
            **({"ssim": list(self.ssim), "ssim_mean": self.mean_ssim} if self.ssim else {}),
            "seconds": list(self.seconds),
            "seconds_median": self.median_seconds,
        }


def split_prompts(prompts: Sequence[Any], held_out: int) -> tuple[list[Any], list[Any]]:
    """Prompts of calibration and of its held-out images: of their own where there are three times as many as those.

    With fewer, such as the labels of a model with ten classes, both are all prompts, and only seeds are new.
    """
    given = list(prompts)
    if len(given) < 3 * held_out:
        return given, given
    return given[:-held_out], given[-held_out:]


class Runner:
    """Runs generations; attaches and detaches the model as each needs.

    ``held_prompts`` are the prompts of stage ``held``; the others take ``prompts``.
    """

    def __init__(
        self,
        subject: Subject,
        base: Plan,
        prompts: Sequence[Any],
        held_prompts: Sequence[Any],
        journal: Journal,
        seed: int,
        inner: str,
        deadline: float | None,
        say: Callable[[str], None],
    ) -> None:
        self.subject, self.base, self.journal = subject, base, journal
        self.prompts, self.held_prompts = list(prompts), list(held_prompts)
        self.seed, self.inner, self.deadline, self.say = seed, inner, deadline, say
        self.with_ssim = importlib.util.find_spec("torchmetrics") is not None
        self._pairs: list[tuple[float, float]] = []
        self._attached: str | None = None
        self._warm: set[tuple[str, int]] = set()

    def _draw(self, stage: str, number: int) -> Tensor:
        if self.deadline is not None and time.monotonic() > self.deadline:
            must = "end within --max-seconds-total"
            raise SparvarError(message("calibration", must, "more work left", "go on with --resume"))
        prompts = self.held_prompts if stage == "held" else self.prompts
        prompt = prompts[number % len(prompts)]
        image = self.subject.draw(self.subject.model, prompt, self.seed * 10_000 + STAGES[stage] + number)
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)
        if not bool(torch.isfinite(image).all()):
            raise SparvarError(message(f"image of prompt {prompt!r}", "be finite", "NaN or infinities"))
        return image

    def dense(self, stage: str, number: int) -> Tensor:
        """The image of the model's own code."""

        def draw() -> Tensor:
            self.detach()
            with mmap_large_blocks():
                return self._draw(stage, number)

        return self.journal.image(f"{stage}/{number}", draw)

    def pace(self) -> float:
        """Seconds of a dense image of the model's own code, which is kept as the first probe's."""
        self.detach()
        with mmap_large_blocks():
            if torch.cuda.is_available():
                self._draw("probe", 0)  # the first generation on a GPU loads its kernels
            started = time.perf_counter()
            image = self._draw("probe", 0)
            seconds = time.perf_counter() - started
        self.journal.image("probe/0", lambda: image)
        return seconds

    def details(self, stage: str, count: int, begin: int = 0) -> list[float]:
        """`detail` of the model's own images."""
        return [detail(self.dense(stage, number)) for number in range(begin, begin + count)]

    def detach(self) -> None:
        """Let the model run its own code."""
        detach(self.subject.model)
        trim_memory()
        self._attached = None

    def _attach(self, plan: Plan, inner: str = "") -> bool:
        """Make the model run a plan; returns whether its next generation compiles."""
        mark = f"{plan.digest} {inner}"
        if self._attached == mark:
            return False
        trim_memory()  # what the plan before left: over dozens of plans holes would add up to more than a generation
        compile(self.subject.model, plan, inner=inner or self.inner)
        self._attached = mark
        if "eager" in (inner, self.inner):
            return False
        kinds = {
            (plan.kind(scale, layer), scale) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))
        }
        known = kinds <= self._warm
        self._warm |= kinds
        return not known

    def _warm_up(self, stage: str) -> None:
        self.say("compiling")
        with mmap_large_blocks():
            self._draw(stage, 0)

    def observe(self, key: str, space: Space, number: int, stage: str = "observe", full: bool = True) -> dict[str, Any]:
        """What an observer saw in one generation: ``rows`` and ``sites``.

        ``full`` adds entropies, sinks, windows and pruning at every scale to the candidates of the space.
        """

        def measure() -> dict[str, Any]:
            self.detach()
            # Candidates run op by op beside dense attention: compiling the rest would only take time.
            compile(self.subject.model, self.base, inner="eager")
            attachment = attachment_of(self.subject.model)
            assert attachment is not None
            pruning = PruningSums(self.base, representative_scale(self.base)) if full else None
            observer = attachment.observer = Observer(self.base, space, pruning, number)
            try:
                with mmap_large_blocks():
                    self._draw(stage, number)
            finally:
                self.detach()
            return {"rows": observer.rows, "sites": as_record(observer.sites)}

        record: dict[str, Any] = self.journal.get(f"{key}/{number}", measure)
        return record

    def measure(self, plan: Plan, stage: str, count: int, begin: int = 0, inner: str = "") -> Measured:
        """``count`` generations of a plan from number ``begin`` of a stage.

        ``inner`` "eager" where the images matter, or how seconds compare with those of another plan run so: nothing is
        compiled for a plan that runs a few times.
        """
        for number in range(begin, begin + count):
            self.dense(stage, number)  # all of them first: each detaches the model
        alone = count < TIMED
        records = [self.one(plan, stage, number, inner, alone) for number in range(begin, begin + count)]
        if all(record["seconds"] is None for record in records):  # of a run that was killed after every one of them
            records[0] = self.one(plan, stage, begin, inner, True, "/again")
        return together(records)

    @property
    def dense_inner(self) -> str:
        """What compiles dense generations that are timed."""
        return "eager" if next(self.subject.model.parameters()).device.type == "cpu" else ""

    def timed_dense(self, base: Plan, count: int) -> Measured:
        """Seconds of dense generations and their sites, with the heap as users have it.

        A processor takes as long for their graphs uncompiled (20.4 and 20.6 s on the shipped model), so that nothing is
        compiled for them there; a GPU does not.
        """
        records = [self.one(base, "probe", number, self.dense_inner, True, "/timed") for number in range(count)]
        return together(records)

    def one(
        self, plan: Plan, stage: str, number: int, inner: str = "", warm: bool = True, mark: str = ""
    ) -> dict[str, Any]:
        """``mse``, ``seconds``, ``ssim`` (or None) and, of probes, ``took`` of one generation.

        Without ``warm``, a generation that compiles is the image of a plan like any other, and its seconds are None.
        """
        reference = self.dense(stage, number)

        def measure() -> dict[str, Any]:
            compiles = self._attach(plan, inner)
            if compiles and warm:
                self._warm_up(stage)
                compiles = False
            elif compiles:
                self.say("compiling")
            attachment = attachment_of(self.subject.model)
            assert attachment is not None
            attachment.timed = stage == "probe"
            trim_memory()  # holes of the image before: 140 MiB less at the peak for 1 % more seconds
            started = time.perf_counter()
            with mmap_large_blocks() if (inner and not mark) or compiles else contextlib.nullcontext():
                image = self._draw(stage, number)
            seconds = None if compiles else time.perf_counter() - started
            image = image.float().cpu()
            mse = float((image - reference).square().mean())
            took = dict(attachment.last.took) if attachment.timed and attachment.last is not None else {}
            return {"mse": max(mse, LEAST_MSE), "seconds": seconds, "ssim": self.ssim(image, reference), "took": took}

        key = f"{stage}/{plan.digest}/{number}{inner and '/' + inner}{mark}"
        record: dict[str, Any] = self.journal.get(key, measure)
        if record["ssim"] is not None and record["mse"] > LEAST_MSE and record["ssim"] < 1:
            self._pairs.append((-10 * math.log10(record["mse"]), math.log(1 - record["ssim"])))
        return record

    def watched(self, plan: Plan, stage: str, number: int, scales: Collection[int]) -> dict[int, Tensor]:
        """What a generation of a plan has drawn after each of ``scales``, decoded, [B, 3, H, W].

        Raises:
            CaptureError: the model's images cannot be decoded before its last scale.
            OptionError: ``draw`` makes something else of them.
        """
        seen: dict[int, Tensor] = {}

        def watch(scale: int, decode: Callable[[], Tensor]) -> None:
            if scale in scales or scale == plan.drawn:
                seen[scale] = decode().float().cpu().clone()

        self._attach(plan, "eager")
        attachment = attachment_of(self.subject.model)
        assert attachment is not None
        attachment.choices.watcher = watch
        try:
            with mmap_large_blocks():
                image = self._draw(stage, number).float().cpu()
        finally:
            attachment.choices.watcher = None
        if not set(scales) <= set(seen) or not _same(seen[plan.drawn], image):
            must = "return the image of the model's own generation method, as it is"
            raise OptionError(message("draw", must, "another", "calibrate without choices per image"))
        return seen

    def ssim(self, image: Tensor, reference: Tensor) -> float | None:
        """SSIM of images [3, H, W] or [B, 3, H, W], or None without torchmetrics and for other shapes."""
        if not self.with_ssim or image.ndim not in (3, 4) or min(image.shape[-2:]) < SSIM_WINDOW:
            return None
        from torchmetrics.functional.image import structural_similarity_index_measure as measure

        pair = [part.reshape(-1, *part.shape[-3:]) for part in (image, reference)]
        return float(measure(pair[0], pair[1], data_range=1.0))  # type: ignore[arg-type]

    def ssim_line(self) -> tuple[float, float]:
        """Slope, below 0, and offset of log(1 - SSIM) over PSNR in dB, as images had them so far.

        Raises:
            OptionError: SSIM was not measured.
        """
        if len(self._pairs) < 2:
            raise OptionError(
                message(
                    "--min-ssim",
                    f"be asked of images [3, H, W] of at least {SSIM_WINDOW} a side, with torchmetrics installed",
                    "none" if self.with_ssim else "no torchmetrics",
                    "pip install 'sparvar[metrics]', or give --min-psnr",
                )
            )
        slope, offset = statistics.linear_regression(*zip(*self._pairs, strict=True))
        return min(slope, -1e-3), offset

    def guided(self, plan: Plan) -> bool:
        """Whether the model draws with guidance, a conditional and an unconditional half of rows, which ``plan`` drops.

        It is a probe of the plan as well.
        """

        def look() -> bool:
            try:
                self.one(plan, "probe", 0, inner="eager")
            except SessionError:
                self.detach()
                return False
            return True

        return bool(self.journal.get("guided", look))

    def error(self, space: Space, plan: Plan, choice: Choice, number: int) -> float:
        """Largest relative output error of a site under a plan, measured beside dense attention on a held-out seed."""
        assert choice.decision is not None or choice.windows
        budgets = tuple(sorted({budget for _, budget in choice.budgets}))
        first = dict(choice.budgets)[min(dict(choice.budgets))] if choice.correction and choice.budgets else None
        own = dataclasses.replace(
            space,
            decisions=(choice.decision if choice.decision is not None else min(space.decisions),),
            settings=(choice.setting,),
            budgets=budgets,
            firsts=() if first is None else (first,),
        )
        record = self.observe(f"error/{plan.digest}", own, number, "held", full=False)
        sites = merged([record["sites"]])
        layers = len(plan.layers)
        return max(
            math.sqrt(relative_errors(sites, scale, layers, candidate)[layer])
            for (scale, layer), candidate in candidates_of(plan, choice).items()
        )

    def close(self) -> None:
        """Give the model back as it was."""
        self.detach()


def _same(decoded: Tensor, image: Tensor) -> bool:
    return decoded.numel() == image.numel() and torch.allclose(decoded.reshape(image.shape), image, atol=1e-4)


def together(records: Sequence[dict[str, Any]]) -> Measured:
    """One `Measured` of the records of `Runner.one`."""
    ssim = [record["ssim"] for record in records]
    scales = set.intersection(*({int(scale) for scale in record["took"]} for record in records))
    return Measured(
        tuple(record["mse"] for record in records),
        tuple(record["seconds"] for record in records if record["seconds"] is not None),
        tuple(value for value in ssim if value is not None) if None not in ssim else (),
        {scale: statistics.median(record["took"][str(scale)] for record in records) for scale in sorted(scales)},
    )
