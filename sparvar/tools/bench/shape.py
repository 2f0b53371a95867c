"""The methods on blocks of a published model's width with random weights: time, FLOPs and memory where size is real.

Random weights draw no image. What stands for quality is how far the last block's output is from the dense one's, which
says whether a method computes what it should and not what it costs: attention of random weights is nearly uniform, and
every scale begins with tokens of its own, so that nothing adds up over scales but keys and values.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

import sparvar
from sparvar.calibrate import KVStatistics, Subject, kv_statistics
from sparvar.errors import OptionError, message
from sparvar.evaluate.timing import Generation
from sparvar.scale_plans import ModelInfo, Plan, Schedule, dense_plan, infinity_schedules
from sparvar.tools.bench.methods import Bench, MethodSettings
from sparvar.tools.bench.pair import Pair, ShapedPair, pairs
from sparvar.tools.bench.published_methods import SKIPPED
from sparvar.zoo import SHAPES, ShapedVAR, shaped

SEEDS = 2
"""Generations of each method where the command does not say: they differ in noise alone."""
BLOCKS = 4
"""Blocks where the command does not say: the fewest with which SparVAR's rule has layers of each policy."""
SIZE = "0.25M"
"""Pixels where the command does not say."""


def sizes() -> dict[str, Schedule]:
    """Infinity's square schedules, by pixels."""
    return {name.partition("/")[0]: grids for name, grids in infinity_schedules().items() if name.endswith("/1")}


def schedule(size: str | None) -> Schedule:
    """The schedule of a size, the usual one's if None. Raises `OptionError` where there is none."""
    known = sizes()
    if size is not None and size not in known:
        raise OptionError(message("--size", f"be one of {', '.join(known)}", repr(size)))
    return known[SIZE if size is None else size]


@dataclass
class Pass(Generation):
    """A generation without an image; ``outputs`` holds the last block's output, guidance applied, by scale."""

    outputs: dict[int, Tensor] = field(default_factory=dict)


class ShapeBench(Bench):
    """Random-weight blocks over a schedule, guidance and cross-attention included; copies share their weights.

    Args:
        shape: name of a published shape.
        blocks: how many of its blocks.
        schedule: of the scales.
        settings: of the run; the first seed and the strength of guidance count.

    Raises:
        OptionError: there is no such shape, or it has no such number of blocks.
    """

    def __init__(self, shape: str, blocks: int | None, schedule: Schedule, settings: MethodSettings) -> None:
        _known("--shape", shape)
        most = SHAPES[shape].depth
        if blocks is not None and not 1 <= blocks <= most:
            remedy = f"leave it out for {min(BLOCKS, most)}"
            raise OptionError(message("--blocks", f"be between 1 and {most}, the blocks of {shape}", blocks, remedy))
        self.name, self.first_seed, self.cfg = shape, settings.first_seed, settings.cfg
        self.model = shaped(shape, schedule, depth=min(BLOCKS, most) if blocks is None else blocks)
        self.base = _dense(self.model, shape)

    def copy(self) -> ShapedVAR:
        return _twin(self.model)

    def pairs(self, settings: MethodSettings) -> dict[str, Pair]:
        """CoDe with a smaller shape, of whose blocks the same share is run."""
        if settings.refiner is None:
            return {}
        _known("--refiner", settings.refiner)
        share = self.model.shape.depth / SHAPES[self.name].depth
        depth = max(1, round(share * SHAPES[settings.refiner].depth))
        small = shaped(settings.refiner, self.base.schedule, depth=depth)
        plans = (self.base, _dense(small, settings.refiner))
        given = (settings.inner, settings.handover, settings.skipping)
        return pairs(ShapedPair, self.copy, lambda: _twin(small), plans, *given)

    def generate(self, model: Any, plan: Plan | None) -> object:
        return model.through(self._last(plan), seed=0, guided=self.cfg != 1.0)

    def draw(self, model: Any, plan: Plan | None, number: int) -> Pass:
        outputs: dict[int, Tensor] = {}
        # Every scale that a method may end with, of the dense model; of the others the last.
        first = self.base.scales - SKIPPED if plan is None else plan.drawn

        def keep(scale: int, output: Tensor) -> None:
            if scale >= first:
                outputs[scale] = output

        guided, last = self.cfg != 1.0, self._last(plan)
        started = time.perf_counter()
        model.through(last, seed=self.first_seed + number, guided=guided, on_scale=keep)
        seconds = time.perf_counter() - started
        outputs = {scale: self._strengthened(output) for scale, output in outputs.items()}
        return Pass(outputs[last], seconds, outputs=outputs)

    def _last(self, plan: Plan | None) -> int:
        # The model's own loop cannot leave out scales; with its `through` they are as good as skipped.
        return self.base.scales if plan is None else plan.drawn

    def _strengthened(self, output: Tensor) -> Tensor:
        """Guidance, as a linear head would see it: [2, N, C], conditional row first, to [1, N, C]."""
        if self.cfg == 1.0:
            return output
        given, free = output.chunk(2)
        return free + self.cfg * (given - free)

    def quality(self, found: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        errors = []
        if any(one.image.shape[-1] != other.image.shape[-1] for one, other in zip(found, dense, strict=True)):
            return {}  # another model's output has no distance from this one's
        for one, other in zip(found, dense, strict=True):
            scale = max(one.outputs)
            exact = other.outputs[scale]
            errors.append(float((one.outputs[scale] - exact).norm() / exact.norm()))
        return {"relative_error_mean": statistics.mean(errors), "relative_error_most": max(errors)}

    def kv_statistics(self) -> KVStatistics:
        model, plan = self.model, self.base
        subject = Subject(
            model,
            lambda model, _, seed: model.through(plan.scales, seed=seed, guided=self.cfg != 1.0),
            plan.schedule,
            plan.model.heads,
            plan.model.head_dim,
        )
        return kv_statistics(subject, [""], seed=1, plan=plan)

    def settings(self) -> dict[str, Any]:
        return {"shape": {"name": self.name, **asdict(self.model.shape)}, "schedule": self.base.schedule}


def _known(option: str, shape: str) -> None:
    if shape not in SHAPES:
        raise OptionError(message(option, f"be one of {', '.join(SHAPES)}", repr(shape)))


def _dense(model: ShapedVAR, family: str) -> Plan:
    """A shape's all-dense plan."""
    sites = [f"blocks.{number}.sa" for number in range(model.shape.depth)]
    heads, head_dim = model.shape.heads, model.shape.head_dim
    mark = sparvar.fingerprint(model)
    return dense_plan(
        model.schedule, ModelInfo(sites=sites, heads=heads, head_dim=head_dim, fingerprint=mark, family=family)
    )


def _twin(model: ShapedVAR) -> ShapedVAR:
    """A copy that shares the weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
