"""Two models that draw one image: a large one its first scales, a small one the rest (CoDe, arXiv 2411.17787)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from sparvar.errors import CaptureError, OptionError, message
from sparvar.kernels.common.torch_compat import original_module
from sparvar.models import Call
from sparvar.models.base import State
from sparvar.models.call_arguments import GENERATION_METHODS, bound_arguments, parameters_of
from sparvar.runtime.attaching import attachment_of
from sparvar.runtime.generation_loop import Eager, caching, call_for, check_schedule, run_scales, scale_visitor

WHY = "models that collaborate are run as a chain of their families' functions"


def collaborate(large: nn.Module, small: nn.Module, handover: int = 8) -> Callable[..., Any]:
    """A generation method of two models: ``large`` draws scales 1 to ``handover``, ``small`` the rest.

    The small model reads what the large one drew: its blocks run once over the drafted scales, which fills its own
    keys and values, and then it draws. CoDe does this in one pass under a mask; here it is scale by scale, which
    computes the same and lets a plan of the small model do there what it does in any generation. Both models may be
    attached, each with a plan of its own: skipped scales, and the decision of a plan that adapts, are the small one's.
    Random numbers go on from the large model's last: a model that collaborates with itself draws its own images.

    Args:
        large: the drafter.
        small: the refiner, of the same family, tokenizer and schedule; may be the same model.
        handover: the last scale that ``large`` draws; CoDe's is 8 of 10.

    Returns:
        A function of the arguments of the models' own generation method, which returns what that does.

    Raises:
        CaptureError: a model has no generation method, or, at a call, is of no family, or the models' families or
            schedules differ.
        OptionError: ``handover`` is below 1, or, at a call, not below the number of scales.
    """
    inner_large, inner_small = (original_module(model) for model in (large, small))
    if isinstance(handover, bool) or not isinstance(handover, int) or handover < 1:
        raise OptionError(message("handover", "be a scale, 1 or above", handover))
    methods = [_method(model) for model in (inner_large, inner_small)]

    def generate(*args: Any, **kwargs: Any) -> Any:
        arguments = []
        for method in methods:
            signature = parameters_of(method)
            if signature is not None:
                signature.bind(*args, **kwargs)
            arguments.append(bound_arguments(signature, args, kwargs))
        return _generate(inner_large, inner_small, handover, *arguments)

    return generate


def _method(model: nn.Module) -> Callable[..., Any]:
    for name in GENERATION_METHODS:
        method = getattr(type(model), name, None)
        if callable(method):
            bound: Callable[..., Any] = method.__get__(model)
            return bound
    must = f"have a generation method ({', '.join(GENERATION_METHODS)})"
    raise CaptureError(message(f"model {type(model).__name__}", must, "none"))


def _generate(
    large: nn.Module, small: nn.Module, handover: int, arguments: Mapping[str, Any], of_small: Mapping[str, Any]
) -> Any:
    draft, refine = call_for(large, arguments, WHY), call_for(small, of_small, WHY)
    _check(draft, refine, handover)
    with draft.grad_mode():
        state = _refine(draft, refine, handover, _draft(draft, handover))
        return draft.result(refine.family.decode(state))


def _check(draft: Call, refine: Call, handover: int) -> None:
    a, b = draft.family, refine.family
    remedy = "a drafter must share its refiner's schedule and tokenizer"
    if type(a) is not type(b):
        raise CaptureError(message("collaborating models", "be of one family", f"{a.name} and {b.name}", remedy))
    if (a.schedule, a.prefix) != (b.schedule, b.prefix):
        got = f"{_text(a.schedule)} and {_text(b.schedule)}"
        raise CaptureError(message("collaborating models", "have one schedule", got, remedy))
    if handover >= len(a.schedule):
        must = f"be a scale before the last, at most {len(a.schedule) - 1}"
        raise OptionError(message("handover", must, handover, "use the large model alone to draw all scales with it"))
    for call in (draft, refine):
        attachment = attachment_of(call.family.model)
        if attachment is not None and attachment.enabled:
            plan = attachment.choose(call.family.schedule).plan
            check_schedule(call.family, plan)
            if call is refine and plan.drawn < handover:
                must = f"draw at least scale {handover}, the last of the large model"
                raise OptionError(message(f"plan {plan.name} of the small model", must, f"{plan.drawn} scales"))


def _text(schedule: Any) -> str:
    return f"{len(schedule)} scales to {schedule[-1][0]}x{schedule[-1][1]}"


@contextmanager
def _running(call: Call) -> Iterator[None]:
    """A generation of the call's model, whose caches are on; its generation ends with it."""
    family = call.family
    family.partial = True
    attachment = attachment_of(family.model)
    with nullcontext() if attachment is None else attachment.generating(family.schedule), caching(family):
        yield


def _draft(draft: Call, handover: int) -> dict[int, State]:
    """What of the state is shared after every drafted scale."""
    seen: dict[int, State] = {}

    def visit(scale: int, state: State) -> None:
        seen[scale] = {name: state[name] for name in draft.family.shared}

    with _running(draft):
        run_scales(Eager(draft), handover, visit)
    return seen


class _Refining(Eager):
    """The small model's generation: its blocks run at every scale, and drafted scales are ``seen``, not drawn."""

    def __init__(self, call: Call, seen: Mapping[int, State]) -> None:
        super().__init__(call)
        self.seen = seen

    def leave(self, scale: int, given: State, state: State) -> None:
        if scale not in self.seen:
            super().leave(scale, given, state)
            return
        state.update({name: value.to(self.family.device) for name, value in self.seen[scale].items()})
        state["x"] = self.family.enter(scale + 1, state)


def _refine(draft: Call, refine: Call, handover: int, seen: Mapping[int, State]) -> State:
    """The small model's state after its last scale."""
    family = refine.family
    attachment = attachment_of(family.model)
    last, visit = len(family.schedule), None
    if attachment is not None and attachment.enabled:
        plan = attachment.choose(family.schedule).plan
        last, visit = plan.drawn, scale_visitor(attachment, plan, family)

    def at_least_drafted(scale: int, state: State) -> int | None:
        chosen = visit(scale, state) if visit is not None else None
        return None if chosen is None else max(chosen, handover)

    # The large model's numbers go on.
    going_on = replace(refine, draw=draft.draw, after=draft.after)
    with _running(refine):
        return run_scales(_Refining(going_on, seen), last, at_least_drafted)
