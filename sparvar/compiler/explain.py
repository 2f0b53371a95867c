"""Say of every candidate site whether it is taken, what runs there, and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from sparvar.compiler.find_sites import find_candidates
from sparvar.kernels.common.torch_compat import original_module
from sparvar.models.fingerprint import fingerprint
from sparvar.runtime.attaching import attachment_of
from sparvar.scale_plans import ScaleWork, scale_work


@dataclass(frozen=True)
class SiteReport:
    """One candidate.

    Attributes:
        name: qualified module name.
        attention: names of the attention functions its code refers to.
        taken: whether the attached plan lists it.
        policy: its policy, or "" when not taken.
        reason: why it is or is not taken.
        sparse_scales: scales at which the last generation ran it sparse.
        decided_scale: scale at which the last generation chose its columns, or None.
    """

    name: str
    attention: tuple[str, ...]
    taken: bool
    policy: str
    reason: str
    sparse_scales: tuple[int, ...] = ()
    decided_scale: int | None = None


@dataclass(frozen=True)
class GraphReport:
    """One compiled graph: scale, kind, rewrites per rule, places left alone and why."""

    scale: int
    kind: str
    rewrites: dict[str, int]
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What sparvar does with a model; ``str`` is for people, :meth:`as_dict` for programs."""

    model: str
    fingerprint: str
    plan: str | None
    digest: str | None
    sites: tuple[SiteReport, ...]
    graphs: tuple[GraphReport, ...] = ()
    generations: int = 0
    notes: tuple[str, ...] = field(default=())
    work: tuple[ScaleWork, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.model}  fingerprint {self.fingerprint[:19]}..."]
        lines.append(f"plan {self.plan} ({self.digest})" if self.plan else "no plan attached")
        width = max((len(site.name) for site in self.sites), default=4)
        for site in self.sites:
            mark = "taken" if site.taken else "left "
            lines.append(f"  {mark}  {site.name:<{width}}  {site.policy or '-':<5}  {site.reason}")
        if not self.sites:
            lines.append("  no module whose own forward calls attention")
        if self.graphs:
            lines.append(f"{len(self.graphs)} graphs serve all layers ({self.generations} finished generations):")
        for graph in self.graphs:
            counts = ", ".join(f"{rule} {count}" for rule, count in graph.rewrites.items())
            lines.append(f"  scale {graph.scale:>2}  {graph.kind:<6}  {counts}")
            lines += [f"      {refusal}" for refusal in graph.refusals]
        lines += _work_lines(self.work)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _work_lines(work: tuple[ScaleWork, ...]) -> list[str]:
    """FLOPs of the blocks per scale, and what each pass leaves of them."""
    if not work:
        return []
    lines = ["FLOPs of the blocks with guidance, and the share that is left after each pass:"]
    lines.append(f"  {'scale':>5}  {'GFLOP':>9}  {'columns':>8}  {'tokens':>8}  {'guidance':>8}  {'skipping':>8}")

    def row(name: str, parts: Sequence[float]) -> str:
        shares = "  ".join(f"{100 * part / parts[0]:>6.1f} %" for part in parts[1:])
        return f"  {name:>5}  {parts[0] / 1e9:>9.2f}  {shares}"

    each = [(one.dense, one.columns, one.tokens, one.rows, one.drawn) for one in work]
    lines += [row(str(one.scale), parts) for one, parts in zip(work, each, strict=True)]
    lines.append(row("all", [sum(parts) for parts in zip(*each, strict=True)]))
    return lines


def linear_flops(block: nn.Module) -> float:
    """FLOPs of a block's linear layers per token; those that make modulation (``ada...``) see no tokens."""
    return 2.0 * sum(
        module.weight.numel()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not any(part.startswith("ada") for part in name.split("."))
    )


def explain(model: nn.Module, generate: Callable[[nn.Module], object] | None = None) -> Explanation:
    """Explain what sparvar takes and leaves in ``model``.

    Args:
        model: attached (by ``torch.compile`` or ``sparvar.compile``) or not; an unattached model is
            only searched for candidates.
        generate: runs one generation of an attached model first, so that its graphs are known:
            ``lambda model: model.generate(...)``.
    """
    inner = original_module(model)
    attachment = attachment_of(model)
    if generate is not None:
        generate(model)
    candidates = find_candidates(inner)
    own = fingerprint(inner)
    name = type(inner).__name__
    if attachment is None:
        sites = tuple(
            SiteReport(c.name, c.calls, False, "", c.problem or _unattached_reason(c.caches)) for c in candidates
        )
        return Explanation(name, own, None, None, sites)
    plan = attachment.plan
    ran = attachment.last.ran if attachment.last is not None else {}
    index = {site.name: layer for layer, site in enumerate(attachment.sites)}
    sites_found = []
    for candidate in candidates:
        layer = index.get(candidate.name)
        if layer is None:
            reason = candidate.problem or "the plan does not list it"
            sites_found.append(SiteReport(candidate.name, candidate.calls, False, "", reason))
            continue
        sparse = tuple(
            scale for (scale, at), kind in sorted(ran.items()) if at == layer and kind in ("sparse", "pruned")
        )
        decided = next((scale for (scale, at), kind in ran.items() if at == layer and kind == "decide"), None)
        sites_found.append(
            SiteReport(
                candidate.name,
                candidate.calls,
                True,
                plan.layers[layer],
                _taken_reason(plan.layers[layer], sparse, decided, attachment.sites[layer].wrapped, bool(ran)),
                sparse,
                decided,
            )
        )
    graphs = tuple(
        GraphReport(
            report.context.scale,
            report.context.kind,
            dict(report.counts),
            tuple(f"{refusal.rule}: {refusal.node}: {refusal.reason}" for refusal in report.refusals),
        )
        for report in sorted(attachment.reports, key=lambda report: (report.context.scale, report.context.kind))
        if any(plan.kind(report.context.scale, layer) == report.context.kind for layer in index.values())
    )
    scales = [f"the last {plan.skip.last} of {plan.scales} scales are skipped"] if plan.skip is not None else []
    if attachment.choices.seconds:
        scales.append(str(attachment.choices))
    notes = (*attachment.notes, *scales, *(f"{site}: {reason}" for site, reason in attachment.left_alone.items()))
    block = next((candidate.block for candidate in candidates if candidate.name in index), None)
    around = inner.get_submodule(block) if block is not None else attachment.sites[0].module
    work = tuple(scale_work(plan, linear_flops(around)))
    done = attachment.generations
    return Explanation(name, own, plan.name, plan.digest, tuple(sites_found), graphs, done, notes, work)


def _unattached_reason(caches: bool) -> str:
    if caches:
        return "calls attention and keeps a cache: a candidate; attach a plan to use it"
    return "calls attention but no cache is visible in its code: taken only if its graph shows one"


def _taken_reason(policy: str, sparse: tuple[int, ...], decided: int | None, wrapped: str, ran: bool) -> str:
    where = f"compiled as {wrapped}"
    if not ran:
        return f"{where}; nothing generated yet"
    if policy == "dense":
        return f"{where}; the plan keeps it dense"
    chosen = f", columns chosen at scale {decided}" if decided is not None else ""
    return f"{where}; sparse at scales {', '.join(map(str, sparse)) or 'none'}{chosen}"
