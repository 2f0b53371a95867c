"""`calibration.html`: one file, figures inside, that shows why the plan is what it is."""

from __future__ import annotations

import importlib.util
import math
import statistics
from typing import Any

from sparvar.scale_plans import Plan, held_share
from sparvar.tools.reports import calibration_maps as maps
from sparvar.tools.reports import calibration_plots as plots
from sparvar.tools.reports import calibration_reductions as reductions
from sparvar.tools.reports.calibration_facts import EQUAL_DB, decibels
from sparvar.tools.reports.calibration_figure import WIDTH, Report, png
from sparvar.tools.reports.render import render
from sparvar.tools.reports.text import seconds

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
BUDGETS = {
    "min_psnr": "a mean PSNR of at least {:g} dB",
    "min_ssim": "a mean SSIM of at least {:g}",
    "max_seconds": "at most {:g} s an image",
    "max_error": "a relative error of attention of at most {:g}",
    "max_kv": "at most {:g} of the KV cache",
}
PLANS = {"paper": "the paper's fixed setting", "shipped": "the shipped plan"}


def page(plan: Plan, report: Report) -> str:
    """The page as HTML that needs no other file.

    Sections whose facts the report lacks say so and draw nothing; without matplotlib no section draws anything.
    """
    first, *rest = (make(plan, report) for make in SECTIONS)
    asked = [section for make in ASKED if (section := make(plan, report)) is not None]
    spans = plan.pruning.spans if plan.pruning is not None else ()
    columns, rows = _table(report)
    drawn, note = importlib.util.find_spec("matplotlib") is not None, plan.provenance.note
    return render(
        "calibration.html",
        title=f"Calibration of {plan.name}",
        plan=plan,
        report=report,
        asked=_asked(report["budget"]),
        found=_found(plan, report),
        columns=columns,
        rows=rows,
        layers={
            policy: [layer for layer, name in enumerate(plan.layers) if name == policy]
            for policy in ("dense", "cs4a", "csla")
        },
        sparse_sites=sum(
            plan.attention_kind(scale, layer) == "sparse"
            for scale in range(1, plan.scales + 1)
            for layer in range(len(plan.layers))
        ),
        kept_tokens=sorted((scale, share) for span in spans for scale, share in span.keep.items()),
        held_share=held_share(plan),
        why_dense=note.removeprefix("all dense: ") or "no sparse plan met what was asked",
        pruning_notes=(report.get("pruning") or {}).get("notes") or (),
        effort=_effort(report),
        sections=[
            (section, png(section) if drawn and section.draw is not None else "") for section in (first, *asked, *rest)
        ],
        drawn=drawn,
        width=WIDTH,
    )


def _asked(budget: dict[str, Any]) -> str:
    known = [text.format(budget[name]) for name, text in BUDGETS.items() if budget.get(name) is not None]
    return ", ".join(known) or "nothing"


def _found(plan: Plan, report: Report) -> str:
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


def _table(report: Report) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Titles of the columns, and (cells, whether it is the result) of every row: predicted, measured, others, dense."""
    held, predicted, dense = report["held_out"], report["predicted"], report["costs"]["dense_seconds"]
    of_predicted = {"psnr_db_mean": predicted.get("psnr_db"), "seconds_median": predicted.get("seconds")}
    lines = [("measured, images of the check", report["checked"])] if report.get("checked") else []
    lines += [("predicted for new images", of_predicted), ("measured, new images", held)]
    lines += [(PLANS.get(name, f"{name} plan"), other) for name, other in (report.get("others") or {}).items()]
    rows = []
    for name, found in lines:
        took, ssim = found.get("seconds_median"), found.get("ssim_mean")
        saved = f"{100 * (1 - took / dense):.0f} %" if took is not None and dense else ""
        similar = f"{ssim:.3f}" if ssim is not None else ""
        rows.append(([name, decibels(found.get("psnr_db_mean")), similar, seconds(took), saved], found is held))
    rows.append((["dense", "reference", "", seconds(dense), ""], False))
    columns = ["", "PSNR (dB)", "SSIM", "seconds, roofline" if report.get("target") else "seconds", "time saved"]
    if not any(cells[2] for cells, _ in rows):
        return columns[:2] + columns[3:], [(cells[:2] + cells[3:], main) for cells, main in rows]
    return columns, rows


def _effort(report: Report) -> str:
    """How long it took where, how fine the search was, and how far the mean of its images may be from that of others.

    Empty where the report has no time.
    """
    took, machine = report.get("calibration_seconds"), report.get("machine") or {}
    if took is None:
        return ""
    effort, psnr = report["effort"], report["held_out"].get("psnr_db") or []
    text = (
        f"{took / 60:.1f} minutes on {machine.get('device') or 'this machine'}, by a"
        f" {'thorough' if effort['fine'] else 'quick'} search with {effort['checks']} images that check a plan and"
        f" {effort['held_out']} held out"
    )
    if len(psnr) >= 2 and min(psnr) < EQUAL_DB:
        error = statistics.stdev(min(value, EQUAL_DB) for value in psnr) / math.sqrt(len(psnr))
        text += f", whose mean PSNR has a standard error of {error:.1f} dB"
    return f"{text}; sparvar {machine.get('sparvar', '')}, torch {machine.get('torch', '')}"
