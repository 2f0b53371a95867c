"""What every rule shares: the graph it sees, the outcome it reports, the interface it has."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx


@dataclass(frozen=True)
class Refusal:
    """Why a rule left a place alone: a value, so that it can be reported and tested.

    Attributes:
        rule: name of the rule.
        node: name of the FX node.
        reason: one sentence.
    """

    rule: str
    node: str
    reason: str


@dataclass
class Outcome:
    """What a rule did to one graph."""

    rule: str
    count: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, node: fx.Node, reason: str) -> None:
        self.refusals.append(Refusal(self.rule, node.name, reason))


@dataclass(frozen=True)
class GraphContext:
    """Facts about the graph that is rewritten, known from the call that made it.

    Attributes:
        kind: ``dense``, ``decide``, ``sparse`` or ``pruned``.
        scale: 1-based scale.
        tokens: queries N of this scale.
        keys: keys T of this scale, prefix included.
        capacity: keys of the last scale, prefix included: size of the KV buffer.
        heads, head_dim: of the queries as the plan has them, 0 where it is not known.
        whole: tokens of the scale's grid where only ``tokens`` of them exist, else 0; ``keys`` then counts those that
            exist of this scale, and all places of the scales before.
    """

    kind: str
    scale: int
    tokens: int
    keys: int
    capacity: int
    heads: int = 0
    head_dim: int = 0
    whole: int = 0


class Rule(Protocol):
    """One rewrite; ``apply`` edits the graph in place and reports."""

    name: str

    def applies_to(self, context: GraphContext) -> bool: ...

    def apply(self, graph: fx.Graph, context: GraphContext) -> Outcome: ...


def uuid(rules: tuple[Rule, ...]) -> str:
    """Digest of the rules' names and source, for cache keys."""
    digest = hashlib.sha256()
    for rule in rules:
        digest.update(rule.name.encode())
        digest.update(inspect.getsource(inspect.getmodule(rule.apply)).encode())  # type: ignore[arg-type]
    return digest.hexdigest()[:16]
