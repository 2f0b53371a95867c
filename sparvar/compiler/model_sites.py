"""The sites of one model, with the graphs that run in their place: what an attachment is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sparvar.compiler.compiled_sites import SiteGraphs, site_graphs, unwrap_error
from sparvar.compiler.select_sites import blocks_around, select_sites
from sparvar.errors import PlanError
from sparvar.options import Options
from sparvar.runtime.sites import Site
from sparvar.scale_plans import Plan, PlanSet


@dataclass(frozen=True)
class ModelSites:
    """Sites of a model for a set of plans (`sparvar.runtime.sites.CompiledSites`).

    Attributes:
        model: whose modules they are.
        plans: that name the sites.
        options: what is compiled, and how.
        sites: the modules that are wrapped, of one class, in order of execution.
        around: the block of every site, where plans leave tokens or rows out and the sites are not the blocks.
        forward: of the sites' class, unbound.
    """

    model: nn.Module
    plans: PlanSet
    options: Options
    sites: list[Site]
    around: list[Site]
    forward: Callable[..., Any]

    @classmethod
    def of(cls, model: nn.Module, plans: PlanSet, options: Options) -> ModelSites:
        """Choose the sites.

        Raises:
            CaptureError: the model has no attention.
            PlanError: the plans name modules that hold none, or that are of several classes.
        """
        sites = select_sites(model, plans, options.grain)
        forwards = {site.forward for site in sites}
        if len(forwards) != 1:
            raise PlanError(f"plan: its sites must be modules of one class, got {len(forwards)} classes")
        return cls(model, plans, options, sites, blocks_around(model, plans, sites), forwards.pop())

    def graphs_of(self, plan: Plan) -> SiteGraphs:
        """The graphs of a plan's schedule, which all models of the class share."""
        options = self.options
        return site_graphs(self.forward, plan.schedule, plan.prefix, options.inner, options.strict, options.dump)

    def fall_back_to_attention(self) -> ModelSites | None:
        """The attention modules alone, or None where the caller chose what is compiled."""
        if self.options.grain != "auto":
            return None
        return ModelSites.of(self.model, self.plans, replace(self.options, grain="attention"))

    def unwrap_error(self, error: BaseException) -> BaseException:
        """The error of ours inside one that Dynamo raised, or that one."""
        return unwrap_error(error)
