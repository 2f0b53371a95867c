"""CoDe in the table of methods: a large model's first scales and a smaller one's rest, timed as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import sparvar
from sparvar.errors import OptionError, message
from sparvar.scale_plans import Plan
from sparvar.tools.bench.published_methods import SKIPPING, shortened

CODE = "CoDe"
SOURCE = "CoDe, handover at {} of {}"


@dataclass(frozen=True)
class Pair:
    """Two models that draw as one, each compiled with a plan of its own.

    Attributes:
        large: draws the first scales, densely.
        small: draws the rest.
        plan: of the small one; all-dense, or with skipped scales.
        handover: the last scale that ``large`` draws.
    """

    large: nn.Module
    small: nn.Module
    plan: Plan
    handover: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the large model: it says where both run."""
        return self.large.parameters()

    @property
    def kept(self) -> float:
        """FLOPs of all blocks over those of the large model alone; the small one runs over drafted scales, too."""
        large, small = (sparvar.explain(model).work for model in (self.large, self.small))
        drafted = sum(one.drawn for one in large if one.scale <= self.handover)
        return (drafted + sum(one.drawn for one in small)) / sum(one.dense for one in large)


class ImagePair(Pair):
    """Of models that draw images."""

    def generate(
        self, labels: list[str | int], seed: int, cfg: float, on_scale: Callable[[int], None] | None = None
    ) -> Tensor:
        """As the models' own; ``on_scale`` hears of the last scale alone."""
        images: Tensor = sparvar.collaborate(self.large, self.small, self.handover)(labels=labels, seed=seed, cfg=cfg)
        if on_scale is not None:
            on_scale(self.plan.drawn - 1)
        return images


class ShapedPair(Pair):
    """Of random weights without a tokenizer, so that what the small one reads is noise, too."""

    def through(self, last: int, on_scale: Callable[[int, Tensor], None] | None = None, **given: Any) -> Tensor:
        """As the models' own; ``on_scale`` hears of the small model's scales."""
        large: Any = self.large
        small: Any = self.small
        large.through(self.handover, **given)
        tokens: Tensor = small.through(last, on_scale=on_scale, **given)
        return tokens


def handover_of(plan: Plan, asked: int | None) -> int:
    """The scale that is asked for, or four fifths of those that are drawn, as CoDe's 8 of 10.

    Raises:
        OptionError: it is not below the last drawn scale.
    """
    handover = round(0.8 * plan.drawn) if asked is None else asked
    if not 1 <= handover < plan.drawn:
        must = f"be a scale before the last drawn one, 1 to {plan.drawn - 1}"
        raise OptionError(message("--handover", must, handover, "leave it out for four fifths of the scales"))
    return handover


def pairs(
    kind: type[Pair],
    large: Callable[[], nn.Module],
    small: Callable[[], nn.Module],
    plans: tuple[Plan, Plan],
    inner: str,
    handover: int | None,
    skipping: bool,
) -> dict[str, Pair]:
    """Rows of the table by name.

    Args:
        kind: what draws with both.
        large: makes the large model, which is not attached yet.
        small: makes the small one.
        plans: their all-dense plans.
        inner: compiler of their graphs.
        handover: see `handover_of`; also that of the row with skipped scales, where it is given.
        skipping: also with the last scales skipped.
    """
    refining = {CODE: plans[1]}
    if skipping:
        refining[f"{CODE}{SKIPPING}"] = shortened(plans[1])
    found = {}
    for name, plan in refining.items():
        models = (sparvar.compile(large(), plans[0], inner=inner), sparvar.compile(small(), plan, inner=inner))
        found[name] = kind(*models, plan, handover_of(plan, handover))
    return found
