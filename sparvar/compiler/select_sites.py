"""Which modules of a model are wrapped: the sites that a plan names, and the blocks around them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparvar.compiler.find_sites import Candidate, find_candidates, prepare_tracing
from sparvar.errors import CaptureError, OptionError, PlanError, message
from sparvar.models.call_arguments import parameters_of
from sparvar.runtime.sites import Site
from sparvar.scale_plans import PlanSet


def select_sites(model: nn.Module, plans: PlanSet, grain: str) -> list[Site]:
    """The modules to wrap, in the plans' order.

    Raises:
        CaptureError: the model has no attention, or the plan names modules that hold none.
    """
    candidates = {candidate.name: candidate for candidate in find_candidates(model)}
    possible = [name for name, candidate in candidates.items() if candidate.problem is None]
    if not possible:
        found = "; ".join(f"{candidate.name}: {candidate.problem}" for candidate in candidates.values())
        raise CaptureError(
            message(
                f"model {type(model).__name__}",
                "hold modules whose forward calls attention (scaled_dot_product_attention, flash_attn_func,"
                " memory_efficient_attention, or softmax(QK^T)V)",
                found or "none among its modules",
                "sparvar has nothing to do here",
            )
        )
    wanted = plans.model.sites
    missing = [name for name in wanted if name not in possible]
    if missing:
        reasons = {
            name: candidates[name].problem if name in candidates else "the model has no attention module of that name"
            for name in missing
        }
        raise PlanError(
            [f"site {name!r}: {reason}" for name, reason in reasons.items()]
            + [f"attention modules of this model: {', '.join(possible)}"]
        )
    per_block: dict[str | None, int] = {}
    for candidate in candidates.values():
        per_block[candidate.block] = per_block.get(candidate.block, 0) + 1
    shared: dict[str | None, int] = {}
    for name in wanted:
        shared[candidates[name].block] = shared.get(candidates[name].block, 0) + 1
    sites = []
    for name in wanted:
        candidate = candidates[name]
        own = candidate.block is not None and shared[candidate.block] == 1
        if grain == "block" and not own:
            raise OptionError(message("option grain", "be attention where no block holds a site alone", "block"))
        alone = own and per_block[candidate.block] == 1
        sites.append(_site(model, candidate, whole_block=grain == "block" or (alone and grain != "attention")))
    return sites


def blocks_around(model: nn.Module, plans: PlanSet, sites: Sequence[Site]) -> list[Site]:
    """The blocks that plans reduce, where the sites are the attention modules alone; none where they are the blocks.

    Raises:
        PlanError: a site is in no block of its own.
    """
    if not any(plan.reduces for plan in plans.plans) or sites[0].wrapped != sites[0].name:
        return []
    candidates = {candidate.name: candidate for candidate in find_candidates(model)}
    names = [candidates[site.name].block for site in sites]
    alone = [site.name for site, name in zip(sites, names, strict=True) if name is None or names.count(name) > 1]
    if alone:
        must = "be in a block of their own where a plan leaves out tokens or rows"
        raise PlanError(message(f"site {', '.join(alone[:3])}", must, "none, or one shared with another site"))
    return [_wrapped(model, site.name, name) for site, name in zip(sites, names, strict=True) if name is not None]


def _site(model: nn.Module, candidate: Candidate, whole_block: bool) -> Site:
    wrapped = candidate.block if whole_block and candidate.block is not None else candidate.name
    prepare_tracing(model.get_submodule(wrapped), candidate.module)
    return _wrapped(model, candidate.name, wrapped)


def _wrapped(model: nn.Module, name: str, wrapped: str) -> Site:
    module = model.get_submodule(wrapped)
    return Site(name, module, wrapped, type(module).forward, parameters_of(module.forward))
