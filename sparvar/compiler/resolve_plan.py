"""Which plans a model runs: those that an option names, or the shipped ones of its fingerprint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sparvar.errors import PlanError, message
from sparvar.models.fingerprint import fingerprint
from sparvar.options import PlanSource
from sparvar.scale_plans import Plan, PlanSet, find_published, load_plan, published_models, shipped_plans


def resolve_plan(model: nn.Module, source: PlanSource) -> PlanSet:
    """The plans that an option names; ``"auto"`` finds the shipped ones of the model's fingerprint.

    Raises:
        PlanError: there is none, one cannot be read, or was made for another model.
    """
    own = fingerprint(model)
    if source == "auto":
        shipped = [plan for plan in shipped_plans().values() if _fits(plan, model, own)]
        found = (
            PlanSet.of(shipped[:1])
            if shipped
            else find_published((name, parameter.shape) for name, parameter in model.named_parameters())
        )
        if found is None:
            raise PlanError(
                f'plan "auto": no shipped plan has the fingerprint of this {type(model).__name__} ({own[:19]}...),'
                " and its blocks are those of no published model that sparvar knows"
                f" ({', '.join(published_models())});"
                ' pass options={"plan": ...} with a plan made for it (sparvar.scale_plans.default_plan starts one)'
            )
        return found
    if isinstance(source, PlanSet):
        plans = PlanSet.of(source.plans, source.rule, source.name)
    elif isinstance(source, str) and source in published_models():
        plans = published_models()[source].plans()
    else:
        plans = PlanSet.of(load_plan(each) for each in ([source] if isinstance(source, Plan | Path | str) else source))
    for plan in plans.plans:
        if plan.adapt is not None and plan.adapt.fingerprint not in _fingerprints(model, plan, own):
            raise PlanError(
                message(
                    f"plan {plan.name}: adapt",
                    f"be fitted on this {type(model).__name__} (fingerprint {own[:19]}...)",
                    f"fitted on another model ({plan.adapt.fingerprint[:19]}...)",
                    "fit it on this one (sparvar.calibrate.fit.skip), or take adapt out of the plan",
                )
            )
        if plan.model.fingerprint and not _fits(plan, model, own):
            raise PlanError(
                message(
                    "plan",
                    f"be made for this {type(model).__name__} (fingerprint {own[:19]}...)",
                    f"one for {plan.model.family or 'another model'} ({plan.model.fingerprint[:19]}...)",
                    "use that model, or a plan made for this one",
                )
            )
    return plans


def _fits(plan: Plan, model: nn.Module, own: str) -> bool:
    """Whether a plan names the fingerprint ``own`` of ``model``, or the one it would have in the plan's own type."""
    return plan.model.fingerprint in _fingerprints(model, plan, own)


def _fingerprints(model: nn.Module, plan: Plan, own: str) -> set[str]:
    dtype = getattr(torch, plan.model.dtype, None)
    return {own} | ({fingerprint(model, dtype)} if isinstance(dtype, torch.dtype) else set())
