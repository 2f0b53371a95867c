"""Run the ordered rules over a graph and keep what each did."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import fx

from sparvar.passes.base import GraphContext, Outcome, Refusal, Rule
from sparvar.passes.rewrite import KvCacheRule, RowMlpRule, SiteRule

PASSES: tuple[Rule, ...] = (
    KvCacheRule(),
    SiteRule("decide"),
    SiteRule("sparse"),
    SiteRule("pruned"),
    SiteRule("score"),
    SiteRule("observe"),
    RowMlpRule(),
)
"""The order: the cache first, while attention is still there to tell which ``cat`` grows it."""


@dataclass
class Report:
    """What the passes did to one graph.

    Attributes:
        context: the graph's kind and sizes.
        counts: rewrites per rule that applied.
        refusals: places left alone, with the reason.
        seconds: time per rule.
        text: the graph after all rules.
    """

    context: GraphContext
    counts: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    text: str = ""


def graph_text(graph: fx.Graph) -> str:
    """A graph as text, one node a line, without anything that differs between machines."""
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {node.args[0]}")
            continue
        value = node.meta.get("example_value", node.meta.get("val"))
        shape = f": {list(value.shape)}" if hasattr(value, "shape") else ""
        if node.op == "placeholder":
            lines.append(f"%{node.name}{shape} = input")
            continue
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        given = ", ".join([*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())])
        lines.append(f"%{node.name}{shape} = {target}({given})")
    return "\n".join(lines) + "\n"


def run_passes(
    module: fx.GraphModule, context: GraphContext, rules: tuple[Rule, ...] = PASSES, dump: Path | None = None
) -> Report:
    """Apply ``rules`` in order to ``module`` in place.

    ``dump`` names a folder that gets the graph before and after each rule, numbered.
    """
    report = Report(context)
    stem = f"scale{context.scale:02d}-{context.kind}"
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
        (dump / f"{stem}-0-captured.txt").write_text(graph_text(module.graph))
    for number, rule in enumerate(rules, start=1):
        if not rule.applies_to(context):
            continue
        started = time.perf_counter()
        outcome: Outcome = rule.apply(module.graph, context)
        report.seconds[rule.name] = time.perf_counter() - started
        report.counts[rule.name] = outcome.count
        report.refusals += outcome.refusals
        if dump is not None:
            (dump / f"{stem}-{number}-{rule.name}.txt").write_text(graph_text(module.graph))
    module.graph.lint()
    module.recompile()
    report.text = graph_text(module.graph)
    return report
