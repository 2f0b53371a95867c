"""`calibration.html`: one file, figures inside, that shows why the plan is what it is."""

from __future__ import annotations

import html
import importlib.util
import math
import statistics
from typing import Any

import sparvar
from sparvar.errors import OptionError, message
from sparvar.tools.reports import calibration_maps as maps
from sparvar.tools.reports import calibration_plots as plots
from sparvar.tools.reports import calibration_reductions as reductions
from sparvar.tools.reports.calibration_facts import EQUAL_DB, decibels, numbers, plural, seconds
from sparvar.tools.reports.calibration_figure import INK, LINE, SOFT, WIDTH, Section, png

STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: {INK};
  background: #fff; }}
h1 {{ font-size: 28px; line-height: 1.2; margin: 0 0 1rem; }}
h2 {{ font-size: 20px; margin: 2.5rem 0 .3rem; }}
p {{ margin: 0 0 .8rem; }}
.fine {{ color: {SOFT}; font-size: 14px; }}
.lead {{ background: #f6f7f9; border-left: 4px solid {INK}; padding: .6rem 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; width: 100%; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .35rem .8rem; border-bottom: 1px solid {LINE}; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
tr.main td {{ font-weight: 600; background: #f6f7f9; }}
ul {{ margin: 0 0 .8rem; padding-left: 1.2rem; }}
img {{ display: block; max-width: 100%; height: auto; }}
pre {{ background: #f6f7f9; padding: 1rem; overflow: auto; font-size: 13px; }}
"""

SECTIONS = (
    plots.front,
    maps.assignment,
    maps.decisions,
    plots.curves,
    plots.scales,
    plots.layers,
    maps.entropy_maps,
    plots.sinks,
    plots.pruning_curve,
)
"""What the page shows below its summary, from the result to its reasons."""
ASKED = (reductions.left_out, reductions.compression, reductions.choices)
"""Of what a calibration looks at only where it was asked to."""


def require_plots() -> None:
    """Raise `OptionError` where the package that draws is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            message("matplotlib", "be installed to draw the report", "no such package", "pip install 'sparvar[plots]'")
        )


def page(plan: sparvar.Plan, report: dict[str, Any]) -> str:
    """The page as HTML that needs no other file. Sections whose facts the report lacks say so and draw nothing."""
    title = f"Calibration of {_escape(plan.name)}"
    asked = [section for make in ASKED if (section := make(plan, report)) is not None]
    first, *rest = (make(plan, report) for make in SECTIONS)
    parts = "\n".join(_section(section) for section in (first, *asked, *rest))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{_summary(plan, report)}\n{parts}\n"
        f"<section><h2>The plan</h2><pre>{_escape(plan)}</pre></section>\n</body></html>\n"
    )


def _escape(text: object) -> str:
    return html.escape(str(text))


def _section(section: Section) -> str:
    image = ""
    if section.draw is not None:
        size = f'width="{WIDTH * 100:.0f}" height="{section.height * 100:.0f}"'
        image = f'<img alt="{_escape(section.alt)}" {size} src="data:image/png;base64,{png(section)}">'
    return f"<section><h2>{_escape(section.title)}</h2><p>{_escape(section.text)}</p>{image}</section>"


def _asked(budget: dict[str, Any]) -> str:
    words = {
        "min_psnr": "a mean PSNR of at least {:g} dB",
        "min_ssim": "a mean SSIM of at least {:g}",
        "max_seconds": "at most {:g} s an image",
        "max_error": "a relative error of attention of at most {:g}",
        "max_kv": "at most {:g} of the KV cache",
    }
    known = [text.format(budget[name]) for name, text in words.items() if budget.get(name) is not None]
    return ", ".join(known) or "nothing"


def _summary(plan: sparvar.Plan, report: dict[str, Any]) -> str:
    target, notes = report.get("target"), []
    if target:
        notes.append(
            f"Seconds are a roofline for {target}: what its arithmetic and memory bandwidth allow, computed and not"
            " measured."
        )
    if report.get("new_prompts") is False:
        notes.append(
            "New images are those of new seeds; their prompts are the file's, which is too short to keep some apart."
        )
    notes += [f"Pruning: {note}." for note in (report.get("pruning") or {}).get("notes") or ()]
    took = report.get("calibration_seconds")
    if took is not None:
        machine = report.get("machine") or {}
        tool = f"sparvar {machine.get('sparvar', '')}, torch {machine.get('torch', '')}"
        where = f"{took / 60:.1f} minutes on {machine.get('device') or 'this machine'}"
        notes.append(f"Calibration took {where}, {_effort(report)}; {tool}.")
    fine = "".join(f'<p class="fine">{_escape(note)}</p>' for note in notes)
    story = "".join(f"<li>{_escape(text)}</li>" for text in _story(plan, report))
    lead = f"Asked for: {_asked(report['budget'])}. Found: {_found(plan, report)}"
    return f'<p class="lead">{_escape(lead)}</p>{_table(report)}<ul>{story}</ul>{fine}'


def _effort(report: dict[str, Any]) -> str:
    """How fine the search was, and how far the mean of its held-out images may be from that of others."""
    effort, psnr = report["effort"], report["held_out"].get("psnr_db") or []
    how = "thorough" if effort["fine"] else "quick"
    text = f"by a {how} search with {effort['checks']} images that check a plan and {effort['held_out']} held out"
    if len(psnr) < 2 or min(psnr) >= EQUAL_DB:
        return text
    error = statistics.stdev(min(value, EQUAL_DB) for value in psnr) / math.sqrt(len(psnr))
    return f"{text}, whose mean PSNR has a standard error of {error:.1f} dB"


def _found(plan: sparvar.Plan, report: dict[str, Any]) -> str:
    """What new images gave, and what they miss of the budget."""
    held, budget, dense = report["held_out"], report["budget"], report["costs"]["dense_seconds"]
    psnr, took = held.get("psnr_db_mean"), held.get("seconds_median")
    missed = [
        name
        for name, limit, value, sign in (
            ("PSNR", budget.get("min_psnr"), psnr, 1),
            ("SSIM", budget.get("min_ssim"), held.get("ssim_mean"), 1),
            ("seconds", budget.get("max_seconds"), took, -1),
        )
        if limit is not None and value is not None and sign * value < sign * limit
    ]
    if plan.all_dense:
        text = "no sparse plan that meets it, so the plan is all dense."
    elif psnr is None or took is None:
        text = f"{plan.provenance.note or plan.name}."
    else:
        quality = "images equal to dense ones" if psnr >= EQUAL_DB else f"{psnr:.2f} dB"
        time = f"{seconds(took)} s, where dense takes {seconds(dense)} s"
        text = f"{quality} on images that calibration had not seen, in {time}."
    return f"{text} It misses the {' and '.join(missed)} asked for." if missed else text


def _table(report: dict[str, Any]) -> str:
    held, predicted, dense = report["held_out"], report["predicted"], report["costs"]["dense_seconds"]
    of_predicted = {"psnr_db_mean": predicted.get("psnr_db"), "seconds_median": predicted.get("seconds")}
    lines = [("measured, images of the check", report["checked"])] if report.get("checked") else []
    lines += [("predicted for new images", of_predicted), ("measured, new images", held)]
    names = {"paper": "the paper's fixed setting", "shipped": "the shipped plan"}
    lines += [(names.get(name, f"{name} plan"), other) for name, other in (report.get("others") or {}).items()]
    similar = any("ssim_mean" in found for _, found in lines)
    seconds_head = "seconds, roofline" if report.get("target") else "seconds"
    head = ["", "PSNR (dB)", *(["SSIM"] if similar else []), seconds_head, "time saved"]
    rows = [_row("th", head)]
    for name, found in lines:
        took = found.get("seconds_median")
        ssim = found.get("ssim_mean")
        saved = f"{100 * (1 - took / dense):.0f} %" if took is not None and dense else ""
        middle = [f"{ssim:.3f}" if ssim is not None else ""] if similar else []
        cells = [name, decibels(found.get("psnr_db_mean")), *middle, seconds(took), saved]
        rows.append(_row("td", cells, found is held))
    rows.append(_row("td", ["dense", "reference", *([""] if similar else []), seconds(dense), ""]))
    return f"<table>{''.join(rows)}</table>"


def _row(cell: str, texts: list[str], main: bool = False) -> str:
    inner = "".join(f"<{cell}>{_escape(text)}</{cell}>" for text in texts)
    return f'<tr class="main">{inner}</tr>' if main else f"<tr>{inner}</tr>"


def _layers(plan: sparvar.Plan, policy: str) -> str:
    found = [layer for layer, name in enumerate(plan.layers) if name == policy]
    if len(found) == len(plan.layers):
        return "All layers"
    return f"{'Layer' if len(found) == 1 else 'Layers'} {numbers(found)}"


def _story(plan: sparvar.Plan, report: dict[str, Any]) -> list[str]:
    """What the plan does, in words."""
    nearest = report.get("nearest")
    if plan.all_dense:
        why = f"The plan is all dense: {plan.provenance.note or 'no sparse plan met what was asked'}."
        why = why.replace("all dense: all dense: ", "all dense: ")
        return [why, f"Nearest: {nearest}."] if nearest else [why]
    mapped, local = "cs4a" in plan.layers, "csla" in plan.layers
    sites = plan.scales * len(plan.layers)
    kinds = [
        plan.attention_kind(scale, layer) for scale in range(1, plan.scales + 1) for layer in range(len(plan.layers))
    ]
    story = [
        f"{kinds.count('sparse')} of {sites} sites (one for each layer and scale) are sparse; attention keeps about"
        f" {100 * plan.cost():.0f} % of the dense multiply-adds."
    ]
    if plan.guidance is not None:
        where = plan.label(plan.guidance.conditional_from)
        story.append(f"From {where} on only the conditional rows are computed.")
    if plan.pruning is not None:
        by_scale = {scale: share for span in plan.pruning.spans for scale, share in span.keep.items()}
        kept = ", ".join(f"{100 * share:.3g} % at scale {scale}" for scale, share in sorted(by_scale.items()))
        where = plan.label(plan.pruning.source)
        story.append(f"Tokens that are computed: {kept}; the others take what the blocks added at {where}, enlarged.")
    if plan.skip is not None:
        story.append(f"The last {plural(plan.skip.last, 'scale')} {'is' if plan.skip.last == 1 else 'are'} not drawn.")
    if plan.adapt is not None:
        most = plural(len(plan.adapt.skip), "scale")
        where = plan.label(plan.adapt.scale)
        story.append(f"After {where} the image decides whether it does without up to {most}.")
    if plan.kv is not None:
        held = 100 * sparvar.scale_plans.held_share(plan)
        store = "" if plan.kv.store == "same" else f", in {plan.kv.store}"
        story.append(f"Between scales the KV cache holds {held:.3g} % of what it would ({plan.kv.method}{store}).")
    if "dense" in plan.layers:
        story.append(f"{_layers(plan, 'dense')}: dense at every scale.")
    if mapped:
        shares = [f"{100 * entry.budget:.3g} % at scale {scale}" for scale, entry in plan.cs4a.items()]
        added = "is added" if plan.output_correction else "is not used"
        story.append(
            f"{_layers(plan, 'cs4a')} (cs4a): at {plan.label(plan.decision_scale or 0)} they choose the keys that"
            f" matter, and later read those alone, carried over by the {plan.index_map} map: {', '.join(shares)}."
            f" The output correction {added}."
        )
    if local:
        last = max(plan.csla)
        windows = plan.csla[last].windows
        sides = f"sides {', '.join(map(str, windows.values()))} at scales {numbers(windows)}" if windows else "none"
        scales = list(plan.csla)
        story.append(
            f"{_layers(plan, 'csla')} (csla): at {'scale' if len(scales) == 1 else 'scales'} {numbers(scales)} they"
            f" read windows around the query's place; at scale {last}: {sides}."
        )
    prefix = f"the prefix of {plan.prefix} tokens and " if plan.prefix else ""
    leading = f"the first {plural(plan.sink_scales, 'scale')}" if plan.sink_scales != 1 else "the first scale"
    if plan.sinks:
        story.append(f"Every sparse site also reads the sinks, {prefix}{leading}: {plural(plan.sinks, 'token')}.")
    if nearest:
        story.append(f"Nearest: {nearest}.")
    return story
