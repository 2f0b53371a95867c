"""The one loop over the scales of a generation, and the generations that run on it.

`run_scales` knows the order of a generation and nothing of how its parts are computed. `Eager` calls a family's
functions and the model's blocks: truncated generations, two models that draw one image, and runs of a family by itself.
The tracers of `sparvar.export` put programs in the place of the same parts.

Blocks are called through the wrappers of an attached model, so that the rest of its plan runs as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, message
from sparvar.models import Call, Family, call_of
from sparvar.models.base import State
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.choices import Chooser
from sparvar.scale_plans import Plan

Visit = Callable[[int, State], int | None]
"""Called after each scale with the scale and the state; gives the new number of the last scale to draw, or None."""
Block = Callable[[int, Tensor, State, int], Tensor]
"""A block: layer, input [rows, tokens, C], state and scale to the output, as `Family.call_block`."""


class Stages(Protocol):
    """The parts of a generation: computed, or traced into programs."""

    @property
    def family(self) -> Family:
        """Whose generation it is."""
        ...

    def begin(self) -> State:
        """The state before the first scale, with ``x``, the first block's input."""
        ...

    def scale(self, scale: int, state: State) -> State:
        """All blocks of a scale and what follows them: the state with the next scale's ``x``."""
        ...


def run_scales(stages: Stages, last: int | None = None, visit: Visit | None = None) -> State:
    """Begin, then run the family's scales in order; returns the state after the last one.

    Args:
        stages: of the generation.
        last: the last scale to run; all scales if None.
        visit: looks at the state after each scale, and may change ``last``.
    """
    scales = stages.family.scales
    last = scales[-1] if last is None else last
    state = stages.begin()
    for scale in scales:
        if scale > last:
            break
        state = stages.scale(scale, state)
        if visit is not None:
            last = visit(scale, state) or last
    return state


def through_blocks(family: Family, scale: int, x: Tensor, state: State, block: Block | None = None) -> Tensor:
    """The last block's output for the first one's input ``x``; ``block`` is the family's own call if None."""
    call = family.call_block if block is None else block
    for layer in range(family.layers):
        x = call(layer, x, state, scale)
        changed = family.between(layer, x, state, scale)
        x = x if changed is None else changed
    return x


class Eager:
    """`Stages` that compute: the model's blocks with the caches that they keep, which must be on (`caching`)."""

    def __init__(self, call: Call) -> None:
        self.call, self.family = call, call.family

    def begin(self) -> State:
        """See `Stages.begin`."""
        return self.family.begin(self.call.inputs)

    def scale(self, scale: int, state: State) -> State:
        """See `Stages.scale`; changes the state in place."""
        x = through_blocks(self.family, scale, state.pop("x"), state)
        self.leave(scale, {**state, "x": x}, state)
        return state

    def leave(self, scale: int, given: State, state: State) -> None:
        """From ``given``, the state with the last block's output as ``x``, update ``state``."""
        noise = {each.name: self.call.draw(each).to(self.family.device) for each in self.family.noise_of(scale)}
        state.update(self.family.leave(scale, given, noise))
        if self.call.after is not None:
            self.call.after(scale - 1)


@contextmanager
def caching(family: Family) -> Iterator[None]:
    """Within it the model's blocks keep keys and values, beginning with none."""
    family.caching(True)
    try:
        yield
    finally:
        family.caching(False)


def draw_images(call: Call, last: int | None = None, visit: Visit | None = None) -> Tensor:
    """Images [images, 3, H, W] of a call; of what is drawn until scale ``last`` where that is not the last one."""
    family = call.family
    family.partial = last is not None or visit is not None
    with caching(family):
        state = run_scales(Eager(call), last, visit)
    return family.decode(state)


def run_family(family: Family, inputs: State, seed: int) -> Tensor:
    """The whole generation as a chain of a family's functions and the model's blocks: images [images, 3, H, W]."""
    drawn = family.draw(seed)
    with torch.no_grad():
        return draw_images(Call(family, inputs, lambda noise: drawn[noise.name]))


def call_for(model: nn.Module, arguments: Mapping[str, Any], why: str) -> Call:
    """A call of the model's own generation method as a run of its family.

    Raises:
        CaptureError: the model is of no family that can be chained; says ``why`` it must be.
        OptionError: an argument cannot be mapped.
    """
    try:
        return call_of(model, arguments)
    except CaptureError as error:
        raise CaptureError(f"{why}: {error}") from error


def check_schedule(family: Family, plan: Plan) -> None:
    """Raises :class:`CaptureError` unless the plan is for the family's schedule."""
    if family.schedule != plan.schedule or family.prefix != plan.prefix:
        raise CaptureError(
            message(
                f"plan {plan.name}",
                f"be for the schedule of this generation, up to {family.schedule[-1]}",
                f"another, up to {plan.schedule[-1]}",
                "use a plan made for this schedule",
            )
        )


def generate_truncated(attachment: Attachment, plan: Plan, model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What the model's own generation method returns, drawn scale by scale: the plan may end before the last scale.

    Raises:
        CaptureError: the model is of no family, or the plan is for another schedule.
        OptionError: an argument of the call cannot be mapped.
    """
    call = call_for(model, arguments, f"plan {plan.name} skips scales, which the model's own loop cannot do")
    check_schedule(call.family, plan)
    with call.grad_mode():
        return call.result(draw_images(call, plan.drawn, scale_visitor(attachment, plan, call.family)))


def scale_visitor(attachment: Attachment, plan: Plan, family: Family) -> Visit | None:
    """What looks at a generation of an attached model: the decision of a plan that adapts, and hooks."""
    chooser = Chooser(plan, attachment.choices) if plan.adapt is not None else None
    hooks = attachment.hooks.scales_finished
    if chooser is None and not hooks:
        return None

    def visit(scale: int, state: State) -> int | None:
        def decode() -> Tensor:
            return family.decode(state)

        for hook in hooks:
            hook.scale_finished(scale, decode)
        chosen = chooser(scale, decode) if chooser is not None else None
        if chosen is None:
            return None
        attachment.switch_plan(plan, chosen)
        return chosen.drawn

    return visit
