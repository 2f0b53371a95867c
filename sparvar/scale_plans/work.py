"""Multiplications and additions of a plan, per scale and pass: what columns, tokens, guidance and skipping leave."""

from __future__ import annotations

from dataclasses import dataclass

from sparvar.scale_plans.data import PlanFields
from sparvar.scale_plans.geometry import COLUMN_SUM_COST, kept_share


@dataclass(frozen=True)
class ScaleWork:
    """FLOPs of one scale over all layers, after each pass, in order; each pass leaves out, but a deciding scale adds.

    Attributes:
        scale: number of the scale.
        dense: attention and linear layers of every token and row.
        columns: with sparse attention.
        tokens: with pruned tokens left out, too.
        rows: with unconditional rows left out, too.
        drawn: 0 where the scale is skipped.
    """

    scale: int
    dense: float
    columns: float
    tokens: float
    rows: float
    drawn: float


def scale_work(plan: PlanFields, linear: float, rows: int = 2) -> list[ScaleWork]:
    """FLOPs of the blocks at every scale.

    Args:
        plan: what runs.
        linear: FLOPs of one block's linear layers per token: twice the parameters of their weights.
        rows: batch rows, guidance counted.
    """
    found = []
    width = plan.model.heads * plan.model.head_dim
    for scale in range(1, plan.scales + 1):
        tokens, keys = plan.tokens(scale), plan.keys(scale)
        attention = 4.0 * tokens * keys * width
        shares = {policy: kept_share(plan, scale, policy) for policy in set(plan.layers)}
        dense = columns = kept = 0.0
        for layer, policy in enumerate(plan.layers):
            kind = plan.attention_kind(scale, layer)
            share = shares[policy]
            factor = 1.0
            if kind == "sparse" and share is not None:
                factor = share
            elif kind == "decide":
                factor += COLUMN_SUM_COST / plan.column_sum_stride**2
            span = plan.span(scale, layer)
            part = 1.0 if span is None else plan.kept_tokens(scale, span) / tokens
            dense += attention + linear * tokens
            columns += attention * factor + linear * tokens
            kept += (attention * factor + linear * tokens) * part
        half = 0.5 if plan.conditional(scale) else 1.0
        drawn = 1.0 if scale <= plan.drawn else 0.0
        found.append(
            ScaleWork(scale, rows * dense, rows * columns, rows * kept, rows * kept * half, rows * kept * half * drawn)
        )
    return found


def total_work(plan: PlanFields, linear: float, rows: int = 2) -> tuple[float, float]:
    """(FLOPs with nothing left out, FLOPs of the plan) of all blocks and scales."""
    each = scale_work(plan, linear, rows)
    return sum(one.dense for one in each), sum(one.drawn for one in each)


def attention_share(plan: PlanFields) -> float:
    """Estimated multiply-adds of the plan's attention over those of dense attention (1.0: nothing saved).

    Tokens, rows and scales that are left out count; sparse sites count their `kept_share`, deciding sites
    1 + 0.5 / stride**2 for the column sums. It says nothing about time: gathers are slower than dense reads, and
    attention is only part of a model.
    """
    dense, drawn = total_work(plan, 0.0)
    return drawn / dense if dense else 1.0
