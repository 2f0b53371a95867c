"""Generations as chains of a family's functions: for what a model's own loop over scales cannot be told from inside.

The blocks are called through the wrappers of an attached model, so that the rest of its plan runs as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sparvar.errors import CaptureError, message
from sparvar.models import Call, Family, call_of
from sparvar.models.base import State
from sparvar.runtime.attachment import Attachment
from sparvar.runtime.choices import Chooser
from sparvar.scale_plans import Plan

Visit = Callable[[int, State], int | None]
"""Called after each scale with the scale and the state; gives the new number of the last scale to draw, or None."""


def scales_of(call: Call, last: int, visit: Visit | None = None, state: State | None = None, first: int = 0) -> State:
    """Draw a call's scales up to ``last``; caches must be on.

    Args:
        call: what is drawn.
        last: the last scale.
        visit: looks at the state after each scale.
        state: where scales before ``first`` are drawn, the state after them.
        first: the first scale to draw; those before are left out.
    """
    family = call.family
    state = family.begin(call.inputs) if state is None else state
    for scale in family.scales:
        if not first <= scale <= last:
            continue
        x = family.through_blocks(scale, state)
        noise = {each.name: call.draw(each).to(family.device) for each in family.noise if each.scale == scale}
        state.update(family.leave(scale, {**state, "x": x}, noise))
        if call.after is not None:
            call.after(scale - 1)
        last = (visit(scale, state) if visit is not None else None) or last
    return state


def drawn(call: Call, last: int, visit: Visit | None = None) -> Tensor:
    """Images of a call that ends after scale ``last``, decoded from what was accumulated until then."""
    family = call.family
    family.partial = True
    family.caching(True)
    try:
        state = scales_of(call, last, visit)
    finally:
        family.caching(False)
    return family.decode(state)


def mapped(model: nn.Module, arguments: Mapping[str, Any], why: str) -> Call:
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


def shortened(attachment: Attachment, plan: Plan, model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """What the model's own generation method returns where the plan does not draw all scales.

    Raises:
        CaptureError: the model is of no family, or the plan is for another schedule.
        OptionError: an argument of the call cannot be mapped.
    """
    call = mapped(model, arguments, f"plan {plan.name} skips scales, which the model's own loop cannot do")
    check_schedule(call.family, plan)
    with call.grad_mode():
        return call.result(drawn(call, plan.drawn, visits(attachment, plan, call.family)))


def visits(attachment: Attachment, plan: Plan, family: Family) -> Visit | None:
    """What looks at a generation of an attached model: the decision of a plan that adapts, and calibration."""
    chooser = Chooser(plan, attachment.go_on, attachment.choices) if plan.adapt is not None else None
    watcher = attachment.choices.watcher
    if chooser is None and watcher is None:
        return None

    def visit(scale: int, state: State) -> int | None:
        def decode() -> Tensor:
            return family.decode(state)

        if watcher is not None:
            watcher(scale, decode)
        return chooser(scale, decode) if chooser is not None else None

    return visit


__all__ = ["check_schedule", "drawn", "mapped", "scales_of", "shortened", "visits"]
