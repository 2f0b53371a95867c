"""Contradictions in what a plan drops from the KV cache. See `check`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sparvar.errors import message
from sparvar.scale_plans.data import PlanFields
from sparvar.scale_plans.kv_cache import KINDS, WHOLE

MAX_POOL = 99


def kv_problems(plan: PlanFields) -> Iterator[str]:
    """Of ``plan.kv``; counts are looked at only where kinds and scales are sound."""
    if plan.kv is None:
        return
    problems = [*_numbers(plan), *_kinds(plan), *_scales(plan), *_combinations(plan)]
    yield from problems or _counts(plan)


def _numbers(plan: PlanFields) -> Iterator[str]:
    kv = plan.kv
    assert kv is not None
    if kv.queries < 1 or math.isqrt(kv.queries) ** 2 != kv.queries:
        yield message("kv.queries", "be a square number above 0: as many patches down as across", kv.queries)
    if kv.store == "bfloat16" and plan.model.dtype not in ("float32", "bfloat16"):
        remedy = "a cat with it would widen every cache"
        yield message("kv.store", "be same unless the model computes in float32 or bfloat16", kv.store, remedy)
    if not 1 <= kv.pool <= MAX_POOL or kv.pool % 2 == 0:
        yield message("kv.pool", f"be odd and between 1 and {MAX_POOL}", kv.pool, "1 averages over nothing")


def _kinds(plan: PlanFields) -> Iterator[str]:
    kv = plan.kv
    assert kv is not None
    layers, valid = len(plan.layers), (*KINDS[kv.method], WHOLE)
    if len(kv.kinds) != layers:
        must = f"have {layers} entries, one per layer"
        yield message("kv.kinds", must, len(kv.kinds), f'[["{WHOLE}"]] for a layer that keeps everything')
    for layer, kinds in enumerate(kv.kinds):
        subject = f"kv.kinds, layer {layer}"
        unknown = [kind for kind in kinds if kind not in valid]
        if unknown:
            yield message(subject, f"be of {', '.join(valid)} with method {kv.method}", repr(unknown[0]))
        if not kinds:
            yield message(subject, "name a kind", "none")
        elif len(kinds) > 1 and (kv.method != "hack" or WHOLE in kinds):
            yield message(subject, "be one kind for the whole layer", f"{len(kinds)}", "only hack tells heads apart")
        elif len(kinds) > 1 and plan.model.heads % len(kinds):
            must = f"name one kind, or one for each key head of a model with {plan.model.heads} heads"
            yield message(subject, must, f"{len(kinds)} kinds")
    if not any(kind != WHOLE for kinds in kv.kinds for kind in kinds):
        yield message("kv.kinds", "compress at least one layer", "none", "leave kv out to keep everything")


def _scales(plan: PlanFields) -> Iterator[str]:
    kv = plan.kv
    assert kv is not None
    used = [kind for kind in KINDS[kv.method] if any(kind in kinds for kinds in kv.kinds)]
    last = plan.drawn
    for scale, counts in kv.keep.items():
        subject = f"kv.keep.{scale}"
        if not 1 <= scale < last:
            must = f"name a scale between 1 and {last - 1}, before the last that is drawn"
            yield message(subject, must, f"scale {scale}", "what that scale adds is never kept")
        missing = [kind for kind in used if kind not in counts]
        if missing and counts:
            must = f"say how many keys each of {', '.join(used)} keeps: they share one schedule"
            yield message(subject, must, f"nothing for {', '.join(missing)}", "add it, or leave the scale out for all")
        elif missing:
            yield message(subject, f"say how many keys {', '.join(used)} keep", "nothing")
        for kind in counts:
            if kind not in KINDS[kv.method]:
                must = f"count keys of {', '.join(KINDS[kv.method])} with method {kv.method}"
                yield message(subject, must, repr(kind))


def _combinations(plan: PlanFields) -> Iterator[str]:
    kv = plan.kv
    assert kv is not None
    compressed = [layer for layer, kinds in enumerate(kv.kinds[: len(plan.layers)]) if kinds != (WHOLE,)]
    for number, span in enumerate(plan.pruning.spans if plan.pruning is not None else ()):
        both = [layer for layer in compressed if span.first <= layer <= span.last]
        if both:
            must = "leave out layers of pruned spans, whose holes in the cache are counted in whole grids"
            yield message(
                f"kv.kinds, layer {both[0]}", must, f"one of span {number}", f'make it "{WHOLE}", or prune others'
            )
    sparse = [layer for layer in compressed if plan.layers[layer] != "dense"]
    if sparse and not plan.sinks:
        must = "be dense where there are no sinks: a tile whose columns were all dropped would attend to nothing"
        yield message(f"layers, layer {sparse[0]}", must, plan.layers[sparse[0]], "set sink_scales to 1 or more")
    decision = plan.decision_scale
    deciding = [layer for layer in compressed if plan.layers[layer] == "cs4a" and plan.cs4a]
    early = [scale for scale in kv.keep if decision is not None and scale < decision]
    if deciding and early:
        must = f"be at or after the decision scale, {decision}, whose column sums need every key"
        yield message(f"kv.keep.{early[0]}", must, plan.label(early[0]), "decide earlier, or drop keys later")


def _counts(plan: PlanFields) -> Iterator[str]:
    kv = plan.kv
    assert kv is not None
    for scale, counts in kv.keep.items():
        least = max(1, plan.sinks_at(scale))
        for kind, count in counts.items():
            if count < least:
                must = f"be at least {least}, the sinks, which always stay" if plan.sinks else "be at least 1"
                yield message(f"kv.keep.{scale}.{kind}", must, count, "keep more, or have fewer sink scales")
        for kind in counts:
            layers = [layer for layer, kinds in enumerate(kv.kinds) if kind in kinds]
            most = max((plan.present(scale, layer) for layer in layers), default=plan.keys(scale))
            if counts[kind] > most:
                must = f"be at most {most}, the keys that are there by then"
                yield message(f"kv.keep.{scale}.{kind}", must, counts[kind], "leave the scale out to drop nothing")
