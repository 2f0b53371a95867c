"""The static plans that a plan with ``adapt`` decides between."""

from __future__ import annotations

from sparvar.errors import PlanError, message
from sparvar.scale_plans.data import PlanFields


def chosen_changes(plan: PlanFields, skip: int, conditional: int) -> dict[str, object]:
    """The fields that differ in the plan that a decision goes on with.

    Raises:
        PlanError: the plan does not adapt.
    """
    if plan.adapt is None:
        raise PlanError(message("adapt", "be given where a generation decides", "null"), plan.name)
    changes: dict[str, object] = {"adapt": None}
    if skip:
        drawn = plan.scales - skip
        changes |= {"name": f"{plan.name} (last {skip} skipped)", "skip": {"last": skip}}
        # What concerns scales that are not drawn goes with them.
        if plan.pruning is not None and all(scale > drawn for span in plan.pruning.spans for scale in span.keep):
            changes["pruning"] = None
        if plan.kv is not None:
            changes["kv"] = plan.kv.before(drawn)
    elif conditional:
        first = plan.scales - conditional + 1
        fill = plan.adapt.fill
        changes |= {
            "name": f"{plan.name} (conditional from {first})",
            "guidance": {"conditional_from": first, "fill": fill},
        }
    return changes


def graph_bound(plan: PlanFields) -> tuple[int, int]:
    """(static plans, graphs at most) of one batch size: a graph per scale, kind and number of rows."""
    kinds = [len({plan.kind(scale, layer) for layer in range(len(plan.layers))}) for scale in range(1, plan.scales + 1)]
    if plan.adapt is None:
        return 1, sum(kinds[: plan.drawn])
    halves = len(plan.adapt.conditional)
    return 1 + len(plan.adapt.skip) + halves, sum(kinds) + sum(kinds[len(kinds) - halves :])
