"""KV compression from measured statistics, by the papers' rules: pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from sparvar.errors import PlanError, message
from sparvar.scale_plans.check.plan_fields import ranges
from sparvar.scale_plans.data import PlanFields
from sparvar.scale_plans.kv_cache import KVCompression

QUERIES = 64
"""Observation queries of plans made here. ScaleKV has 16; docs/notebook has a page on what they cost."""


def drafters(selectivity: Sequence[Mapping[int, float]], count: int) -> list[int]:
    """The ``count`` layers with the lowest z-scores of selectivity, mean over scales, ascending (ScaleKV, 3.2).

    Args:
        selectivity: per layer, scale -> attention to the scale itself times that to the top keys of its history.

    Raises:
        PlanError: layers were measured at different scales, or ``count`` is not below their number.
    """
    scales = sorted(selectivity[0]) if selectivity else []
    if not scales or any(sorted(layer) != scales for layer in selectivity):
        raise PlanError(message("selectivity", "have the same scales for every layer", "others, or none"))
    if not 0 <= count <= len(selectivity):
        raise PlanError(message("drafters", f"be between 0 and {len(selectivity)}", count))
    totals = [0.0] * len(selectivity)
    for scale in scales:
        values = [layer[scale] for layer in selectivity]
        spread = statistics.pstdev(values)
        for layer, value in enumerate(values):
            totals[layer] += (value - statistics.fmean(values)) / spread if spread else 0.0
    return sorted(sorted(range(len(totals)), key=lambda layer: (totals[layer], layer))[:count])


def scalekv(
    plan: PlanFields,
    selectivity: Sequence[Mapping[int, float]],
    budget: int,
    *,
    drafting: int | None = None,
    decay: float = 0.5,
    queries: int = QUERIES,
    store: str = "same",
) -> KVCompression:
    """Drafters and refiners whose budgets add up to ``budget`` keys per layer at every scale (ScaleKV, 3.2).

    Refiners go from ``budget`` at the first scale that drops keys down to ``decay * budget`` at the last, in equal
    steps; drafters share what is left, so that N_d * B_d + N_r * B_r = L * budget at every scale.

    Args:
        plan: schedule and sinks; only scales with more keys than the budget drop some.
        budget: keys per head and layer, B_uniform.
        drafting: number of drafters; half of the layers if None.
        decay: in (0, 1].
    """
    layers = len(plan.layers)
    number = layers // 2 if drafting is None else drafting
    chosen = drafters(selectivity, number)
    dropping = _dropping(plan, budget, store)
    keep: dict[int, dict[str, int]] = {}
    for step, scale in enumerate(dropping):
        part = step / (len(dropping) - 1) if len(dropping) > 1 else 1.0
        refiner = max(_least(plan, scale), round(budget * (1 - (1 - decay) * part))) if number else budget
        drafter = round((layers * budget - (layers - number) * refiner) / number) if number else budget
        keep[scale] = {"drafter": drafter, "refiner": refiner}
    kinds = [("drafter",) if layer in chosen else ("refiner",) for layer in range(layers)]
    return _made(plan, "scalekv", kinds, keep, queries, store)


def hack(
    plan: PlanFields,
    variance: Sequence[Sequence[float]],
    budget: int,
    *,
    contextual: float = 0.5,
    less: float = 0.5,
    queries: int = QUERIES,
    store: str = "same",
) -> KVCompression:
    """Contextual heads, those with the least column variance, keep fewer keys than structural ones (HACK).

    Args:
        plan: schedule and sinks.
        variance: per layer and key head, variance of attention to a key over queries, mean over keys, last scale.
        budget: keys per head, mean over all heads.
        contextual: share of all heads that are contextual.
        less: what a contextual head keeps, of ``budget``.
    """
    ranked = sorted(((value, layer, head) for layer, heads in enumerate(variance) for head, value in enumerate(heads)))
    count = min(len(ranked) - 1, round(contextual * len(ranked)))
    few = {(layer, head) for _, layer, head in ranked[:count]}
    kinds = [
        tuple("contextual" if (layer, head) in few else "structural" for head in range(len(heads)))
        for layer, heads in enumerate(variance)
    ]
    keep = {}
    for scale in _dropping(plan, budget, store):
        low = max(_least(plan, scale), round(less * budget))
        high = round((len(ranked) * budget - count * low) / (len(ranked) - count))
        keep[scale] = {"contextual": low, "structural": high}
    return _made(plan, "hack", kinds, keep, queries, store)


def local(plan: PlanFields, budget: int, *, store: str = "same") -> KVCompression:
    """The sinks and as much of the latest scales as ``budget`` keys per head hold (SparVAR, table 2)."""
    keep = {scale: {"local": budget} for scale in _dropping(plan, budget, store)}
    return _made(plan, "local", [("local",)] * len(plan.layers), keep, QUERIES, store)


def _least(plan: PlanFields, scale: int) -> int:
    return max(1, plan.sinks_at(scale))


def _dropping(plan: PlanFields, budget: int, store: str) -> list[int]:
    """Scales with more keys than the budget, before the last that is drawn; where keys are stored in a smaller type,
    those with more bytes."""
    bytes_each = _size(plan.model.dtype) / (2.0 if store == "bfloat16" else _size(plan.model.dtype))
    found = [scale for scale in range(1, plan.drawn) if plan.keys(scale) * bytes_each > budget]
    if budget < max(1, plan.sinks):
        raise PlanError(message("budget", f"be at least {max(1, plan.sinks)}, the sinks, which always stay", budget))
    if not found:
        most = plan.keys(plan.drawn - 1)
        raise PlanError(message("budget", f"be below {most}, the keys before the last scale", budget))
    return found


def _made(
    plan: PlanFields,
    method: str,
    kinds: Sequence[Sequence[str]],
    keep: Mapping[int, Mapping[str, int]],
    queries: int,
    store: str,
) -> KVCompression:
    """The record, every count cut to the keys that are there; scales at which nothing is dropped are left out."""
    fields = {"method": method, "kinds": kinds, "queries": queries, "store": store}
    found: dict[int, dict[str, int]] = {}
    for scale in sorted(keep):
        trial = plan.model_copy(update={"kv": KVCompression.model_validate({**fields, "keep": found})})
        most = {
            kind: max(
                (trial.present(scale, n) for n, each in enumerate(kinds) if kind in each), default=plan.keys(scale)
            )
            for kind in keep[scale]
        }
        found[scale] = {kind: min(count, most[kind]) for kind, count in keep[scale].items()}
    return KVCompression.model_validate({**fields, "keep": found})


def held_share(plan: PlanFields) -> float:
    """Bytes of keys and values held between two scales at most, over those of whole caches at the last drawn scale.

    What papers count. Types count where the plan stores in another one than the model's.
    """
    return max(_bytes(plan, scale, len(plan.layers), rest=False) for scale in range(1, plan.drawn + 1)) / _whole(plan)


def peak_share(plan: PlanFields) -> float:
    """The same at the worst moment: while a layer runs, its cache holds all keys of the scale in the model's type."""
    moments = [(scale, layer) for scale in range(1, plan.drawn + 1) for layer in range(len(plan.layers))]
    return max(_bytes(plan, scale, layer, rest=True) for scale, layer in moments) / _whole(plan)


def _whole(plan: PlanFields) -> float:
    return len(plan.layers) * plan.keys(plan.drawn) * _size(plan.model.dtype)


def _size(dtype: str) -> float:
    return {"float64": 8.0, "float32": 4.0}.get(dtype, 2.0)


def _bytes(plan: PlanFields, scale: int, running: int, *, rest: bool) -> float:
    """Bytes per head and channel, once ``running`` layers are through a scale; with ``rest`` the next one runs."""
    model = _size(plan.model.dtype)

    def stored(at: int, layer: int) -> float:
        narrow = plan.kv is not None and plan.kv.store != "same"
        compact = narrow and any(plan.compacts(each, layer) for each in range(1, at + 1))
        return plan.held(at, layer) * (2.0 if compact else model)

    total = sum(stored(scale, layer) for layer in range(running))
    total += sum(stored(scale - 1, layer) for layer in range(running + 1, len(plan.layers)))
    return total + (plan.present(scale, running) * model if rest else 0.0)


def kv_lines(plan: PlanFields) -> list[str]:
    """What a plan drops from its caches, as lines of its table."""
    kv = plan.kv
    if kv is None:
        return []
    stored = "" if kv.store == "same" else f", kept in {kv.store}"
    lines = [
        f"KV cache: {kv.method}{stored}, at most {100 * held_share(plan):.1f} % of whole caches between scales, "
        f"{100 * peak_share(plan):.1f} % while a layer runs"
    ]
    groups: dict[str, list[int]] = {}
    for layer, kinds in enumerate(kv.kinds):
        groups.setdefault(" ".join(kinds), []).append(layer)
    lines += [
        f"  {kinds}: {'layers' if len(layers) > 1 else 'layer'} {ranges(layers)}" for kinds, layers in groups.items()
    ]
    for scale, counts in kv.keep.items():
        kept = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        lines.append(f"  after {plan.label(scale)} of {plan.keys(scale)} keys: {kept}")
    return lines


def transfer_kv(plan: PlanFields, bare: PlanFields, source: Callable[[int], int]) -> KVCompression | None:
    """The compression of ``plan`` at the schedule of ``bare``: the same shares of all keys at corresponding scales.

    None where no scale of that schedule drops any.
    """
    kv = plan.kv
    if kv is None:
        return None
    keep = {}
    for scale in range(1, bare.drawn):
        counts = kv.keep.get(source(scale))
        if counts is not None and bare.keys(scale) > bare.sinks_at(scale):
            share = bare.keys(scale) / plan.keys(source(scale))
            keep[scale] = {kind: max(_least(bare, scale), round(count * share)) for kind, count in counts.items()}
    if not keep:
        return None
    made = _made(bare, kv.method, kv.kinds, keep, kv.queries, kv.store)
    return made.model_copy(update={"pool": kv.pool})
