"""Every contradiction a plan can hold, found at once.

A rule names the fields it reads. Where one of them could not be read at all, the rule is left out, so that a broken
field is reported once and the rest of the plan is checked all the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from sparvar.errors import message
from sparvar.scale_plans.check.adapt import adapt_problems
from sparvar.scale_plans.check.kv_compression import kv_problems
from sparvar.scale_plans.check.reductions import guidance_problems, pruning_problems, skip_problems
from sparvar.scale_plans.data import CALIBRATED_THRESHOLDS, POLICIES, PlanFields

DTYPES = ("float32", "bfloat16", "float16", "float64")
MAX_SIDE = 4096
MAX_PREFIX = 1 << 20

Problems = Iterator[str]


@dataclass(frozen=True)
class Rule:
    """One check: the top-level fields it reads, and a function that yields its problems."""

    fields: frozenset[str]
    find: Callable[[PlanFields], Problems]


RULES: list[Rule] = []


def _rule(*fields: str) -> Callable[[Callable[[PlanFields], Problems]], Callable[[PlanFields], Problems]]:
    def add(find: Callable[[PlanFields], Problems]) -> Callable[[PlanFields], Problems]:
        RULES.append(Rule(frozenset(fields), find))
        return find

    return add


def contradictions(plan: PlanFields, unreadable: Collection[str] = ()) -> list[str]:
    """One line per contradiction, in the order of the file; ``unreadable`` fields are not looked at."""
    broken = set(unreadable)
    schedule = [] if "schedule" in broken else list(_schedule(plan))
    if schedule:  # every rule that looks a grid up would repeat it
        broken.add("schedule")
    return schedule + [problem for rule in RULES if not rule.fields & broken for problem in rule.find(plan)]


def closest(name: str, valid: Collection[str]) -> str:
    """``did you mean 'x'? valid: ...`` for a misspelt name."""
    near = get_close_matches(name, sorted(valid), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(valid)}"


def _schedule(plan: PlanFields) -> Problems:
    if not plan.schedule:
        yield message("schedule", "have at least one scale", "none")
    for number, (height, width) in enumerate(plan.schedule, start=1):
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            must = f"have sides between 1 and {MAX_SIDE}"
            yield message(f"schedule, scale {number}", must, f"[{height}, {width}]")


@_rule("model")
def _model(plan: PlanFields) -> Problems:
    model = plan.model
    if model.fingerprint and not re.fullmatch(r"sha256:[0-9a-f]{64}", model.fingerprint):
        yield message("model.fingerprint", 'be "sha256:" and 64 hex digits, or empty', repr(model.fingerprint))
    if not model.sites:
        yield message("model.sites", "name at least one self-attention module", "none")
    twice = sorted({site for site in model.sites if model.sites.count(site) > 1})
    if twice:
        yield message("model.sites", "name every module once", f"{', '.join(twice)} more than once")
    if model.heads < 1:
        yield message("model.heads", "be at least 1", model.heads)
    if not (8 <= model.head_dim <= 256 and model.head_dim % 8 == 0):
        yield message("model.head_dim", "be a multiple of 8 between 8 and 256", model.head_dim)
    if model.dtype not in DTYPES:
        yield message("model.dtype", f"be one of {', '.join(DTYPES)}", repr(model.dtype))


@_rule("prefix")
def _prefix(plan: PlanFields) -> Problems:
    if not 0 <= plan.prefix <= MAX_PREFIX:
        yield message("prefix", f"be between 0 and {MAX_PREFIX}", plan.prefix)


@_rule("tile")
def _tile(plan: PlanFields) -> Problems:
    if min(plan.tile) < 1 or max(plan.tile) > MAX_SIDE:
        yield message("tile", f"have sides between 1 and {MAX_SIDE}", list(plan.tile))


@_rule("sink_scales", "schedule")
def _sinks(plan: PlanFields) -> Problems:
    if not 0 <= plan.sink_scales <= plan.scales:
        yield message("sink_scales", f"be between 0 and {plan.scales}, the number of scales", plan.sink_scales)


@_rule("decision_scale", "schedule")
def _decision_scale(plan: PlanFields) -> Problems:
    decision = plan.decision_scale
    if decision is not None and not 1 <= decision < plan.scales:
        remedy = "scales after it reuse its columns, so at least one must follow"
        yield message("decision_scale", f"be between 1 and {plan.scales - 1}", plan.label(decision), remedy)


@_rule("decision_scale", "layers")
def _decision_scale_is_set(plan: PlanFields) -> Problems:
    if plan.decision_scale is None and "cs4a" in plan.layers:
        got = f"null with cs4a {_layer_names(plan, 'cs4a')}"
        yield message(
            "decision_scale", "be set where a layer is cs4a", got, "set it, or make those layers dense or csla"
        )


@_rule("column_sum_stride", "tile")
def _stride(plan: PlanFields) -> Problems:
    longest = max(1, *plan.tile)
    if not 1 <= plan.column_sum_stride <= longest:
        must = f"be between 1 and {longest}, the longer side of the tile"
        yield message("column_sum_stride", must, plan.column_sum_stride)


@_rule("layers", "model")
def _layer_count(plan: PlanFields) -> Problems:
    sites = len(plan.model.sites)
    if len(plan.layers) != sites:
        remedy = "give one policy for each module in model.sites"
        yield message("layers", f"have {sites} entries, one per site", len(plan.layers), remedy)


@_rule("layers")
def _policies(plan: PlanFields) -> Problems:
    for policy in dict.fromkeys(plan.layers):
        if policy not in POLICIES:
            must = f"be one of {', '.join(POLICIES)}"
            near = get_close_matches(policy, POLICIES, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else ""
            yield message(f"layers, {_layer_names(plan, policy)}", must, repr(policy), remedy)


@_rule("layers", "cs4a")
def _cs4a_layers_are_sparse(plan: PlanFields) -> Problems:
    if "cs4a" in plan.layers and not plan.cs4a:
        yield _never_sparse(plan, "cs4a", 'e.g. {"12": {"budget": 0.2}}')


@_rule("layers", "csla")
def _csla_layers_are_sparse(plan: PlanFields) -> Problems:
    if "csla" in plan.layers and not plan.csla:
        yield _never_sparse(plan, "csla", 'e.g. {"13": {"windows": {"12": 5, "13": 7}}}')


@_rule("cs4a")
def _budgets(plan: PlanFields) -> Problems:
    for scale, entry in plan.cs4a.items():
        if not 0 < entry.budget <= 1:
            yield message(f"cs4a.{scale}.budget", "be above 0 and at most 1", entry.budget)
        if entry.window and (entry.window < 0 or entry.window % 2 == 0):
            yield message(f"cs4a.{scale}.window", "be odd, or 0 for none", entry.window)


@_rule("cs4a", "schedule")
def _cs4a_scales(plan: PlanFields) -> Problems:
    for scale, entry in plan.cs4a.items():
        if not 1 <= scale <= plan.scales:
            yield _no_such_scale(plan, f"cs4a.{scale}")
        else:
            yield from _window_fits(plan, f"cs4a.{scale}.window", scale, entry.window)


@_rule("cs4a", "schedule", "decision_scale")
def _cs4a_follows_decision(plan: PlanFields) -> Problems:
    for scale in plan.cs4a:
        if plan.decision_scale is not None and 1 <= scale <= min(plan.decision_scale, plan.scales):
            must = f"come after the decision scale, {plan.decision_scale}"
            yield message(f"cs4a.{scale}", must, plan.label(scale), "remove the entry or decide earlier")


@_rule("csla", "schedule")
def _csla_scales(plan: PlanFields) -> Problems:
    for target, entry in plan.csla.items():
        if not 1 <= target <= plan.scales:
            yield _no_such_scale(plan, f"csla.{target}")
        for scale, window in entry.windows.items():
            subject = f"csla.{target}.windows.{scale}"
            if not 1 <= scale <= plan.scales:
                yield _no_such_scale(plan, subject)
                continue
            if scale > target:
                must = f"lie at or before the scale it is for, {target}"
                yield message(subject, must, plan.label(scale), "a scale cannot attend to a later one")
            if window < 1 or window % 2 == 0:
                yield message(subject, "be odd and positive", window, "leave the scale out for no window")
            yield from _window_fits(plan, subject, scale, window)


@_rule("csla", "sink_scales", "prefix", "layers")
def _csla_has_keys(plan: PlanFields) -> Problems:
    for target, entry in plan.csla.items():
        if "csla" in plan.layers and not entry.windows and not (plan.prefix or plan.sink_scales):
            yield message(f"csla.{target}.windows", "name a scale where there are no sinks", "no key at all")


RULES.append(Rule(frozenset({"pruning", "schedule", "layers", "decision_scale"}), pruning_problems))
RULES.append(Rule(frozenset({"guidance", "schedule"}), guidance_problems))
RULES.append(Rule(frozenset({"skip", "schedule", "decision_scale", "layers", "guidance", "pruning"}), skip_problems))
RULES.append(Rule(frozenset({"adapt", "schedule", "decision_scale", "layers", "guidance", "skip"}), adapt_problems))

_KV_FIELDS = {"kv", "schedule", "prefix", "layers", "model", "sink_scales", "decision_scale", "pruning", "skip"}
RULES.append(Rule(frozenset(_KV_FIELDS), kv_problems))


@_rule("thresholds")
def _thresholds(plan: PlanFields) -> Problems:
    given = plan.thresholds
    for name in ("tau", "alpha_min", "alpha_max"):
        value = getattr(given, name)
        if value is not None and not 0 <= value <= 1:
            yield message(f"thresholds.{name}", "be between 0 and 1", value)
    if given.beta is not None and not (math.isfinite(given.beta) and given.beta > 0):
        yield message("thresholds.beta", "be above 0 and finite", given.beta)
    low, high = given.alpha_min, given.alpha_max
    if low is not None and high is not None and low > high:
        yield message("thresholds.alpha_min", f"be at most alpha_max, {high}", low)
    if given.min_keep is not None and not 0 < given.min_keep <= 1:
        yield message("thresholds.min_keep", "be above 0 and at most 1", given.min_keep)
    for layer, score in enumerate(given.scores):
        if not 0 <= score <= 1:
            yield message(f"thresholds.scores, layer {layer}", "be between 0 and 1", score)


@_rule("thresholds")
def _thresholds_are_whole(plan: PlanFields) -> Problems:
    given = plan.thresholds
    missing = [name for name, value in given if value is None or value == ()]
    if missing and any(name not in missing for name in CALIBRATED_THRESHOLDS):
        there = ", ".join(name for name in CALIBRATED_THRESHOLDS if name not in missing)
        verb = "are" if "," in there else "is"
        remedy = f"add {', '.join(missing)}, or take {there} out"
        yield message("thresholds", f"be whole where {there} {verb} given", f"no {', '.join(missing)}", remedy)


@_rule("thresholds", "schedule")
def _threshold_scales(plan: PlanFields) -> Problems:
    for name, least in (("start", 2), ("representative", 1)):
        scale = getattr(plan.thresholds, name)
        if scale is not None and not least <= scale <= plan.scales:
            yield message(f"thresholds.{name}", f"be a scale between {least} and {plan.scales}", scale)


@_rule("thresholds", "layers")
def _threshold_scores(plan: PlanFields) -> Problems:
    scores = plan.thresholds.scores
    if scores and len(scores) != len(plan.layers):
        remedy = "give one score for each layer, 0 where it is kept"
        yield message("thresholds.scores", f"have {len(plan.layers)} entries, one per layer", len(scores), remedy)


@_rule("measured")
def _measured(plan: PlanFields) -> Problems:
    for name, value in plan.measured.items():
        if not math.isfinite(value):
            yield message(f"measured.{printable(name)}", "be a finite number", value, "leave out what was not measured")


def _layer_names(plan: PlanFields, policy: str) -> str:
    numbers = [number for number, value in enumerate(plan.layers) if value == policy]
    return "layers " + ranges(numbers) if len(numbers) > 1 else f"layer {numbers[0]}"


def ranges(numbers: Collection[int]) -> str:
    """Ascending numbers as ``0-3, 5, 7-8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1][-1:] = [runs[-1][-1], number] if len(runs[-1]) == 1 else [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def printable(text: str) -> str:
    """Text as it is, or quoted with escapes where it is empty or would break a line or a terminal."""
    return text if text and text.isprintable() else json.dumps(text)


def _never_sparse(plan: PlanFields, policy: str, example: str) -> str:
    got = f"none, while {_layer_names(plan, policy)} use it"
    return message(policy, "list at least one scale", got, f"add one, {example}, or make those layers dense")


def _no_such_scale(plan: PlanFields, subject: str) -> str:
    scale = subject.rsplit(".", 1)[-1]
    return message(subject, f"name a scale between 1 and {plan.scales}", f"scale {scale}")


def _window_fits(plan: PlanFields, subject: str, scale: int, window: int) -> Problems:
    # From any position this side reaches every cell of the grid: a larger one is a slip of the pen.
    widest = 2 * max(plan.grid(scale)) - 1
    if window > widest:
        yield message(subject, f"be at most {widest}, which covers all of {plan.label(scale)}", window)
