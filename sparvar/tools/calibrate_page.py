"""`calibration.html`: one file, figures inside, that shows why the plan is what it is."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import sparvar
from sparvar.errors import OptionError, message

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .9rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{background:#f5f5f5;padding:1rem;overflow:auto}"""


def require_plots() -> None:
    """Raise `OptionError` where the package that draws is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            message("matplotlib", "be installed to draw the report", "no such package", "pip install 'sparvar[plots]'")
        )


def page(plan: sparvar.Plan, report: dict[str, Any]) -> str:
    """The page as HTML that needs no other file."""
    held, predicted = report["held_out"], report["predicted"]
    rows = [
        ("predicted before the check", predicted["psnr_db"], predicted["seconds"]),
        ("measured on held-out images", held["psnr_db_mean"], held["seconds_median"]),
        *((f"{name} plan", other["psnr_db_mean"], other["seconds_median"]) for name, other in report["others"].items()),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{psnr:.2f}</td><td>{took:.3f}</td></tr>" for name, psnr, took in rows)
    asked = ", ".join(f"{name} {value:g}" for name, value in report["budget"].items() if value is not None)
    figures = [
        ("Time against PSNR", "Each point is a plan; the line is what the solver predicts at best.", _front),
        (
            "Output error against kept keys, by layer",
            "At the last scale, with the index map and decision scale of the plan; mean over heads and prompts.",
            _errors,
        ),
        ("Recall against kept keys, by layer", "Share of the softmax mass that lies on the kept columns.", _recall),
        (
            "Layers and scales",
            "Entropy of attention in nats, and relative error of what the plan runs there; blank where it is dense.",
            _map,
        ),
    ]
    parts = "".join(
        f"<h2>{title}</h2><p>{text}</p><img alt='{title}' src='data:image/png;base64,{_image(draw, plan, report)}'>"
        for title, text, draw in figures
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Calibration of {html.escape(plan.name)}</title>"
        f"<style>{STYLE}</style><h1>Calibration of {html.escape(plan.name)}</h1>"
        f"<p>Asked for: {html.escape(asked)}. Found: {html.escape(plan.provenance.note)}. Dense takes"
        f" {report['costs']['dense_seconds']:.2f} s an image.</p>"
        f"<table><tr><th></th><th>PSNR (dB)</th><th>seconds</th></tr>{body}</table>"
        f"{parts}<h2>The plan</h2><pre>{html.escape(str(plan))}</pre></html>"
    )


def _image(
    draw: Callable[[Any, sparvar.Plan, dict[str, Any]], None], plan: sparvar.Plan, report: dict[str, Any]
) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(8, 4.4), dpi=110)
    try:
        draw(figure, plan, report)
        figure.tight_layout()
        data = io.BytesIO()
        figure.savefig(data, format="png")
    finally:
        plt.close(figure)
    return base64.b64encode(data.getvalue()).decode()


def _front(figure: Any, plan: sparvar.Plan, report: dict[str, Any]) -> None:
    axes = figure.add_subplot()
    front = report["front"]
    axes.plot([p["seconds"] for p in front], [p["psnr_db"] for p in front], color="#888", label="predicted front")
    for number, trial in enumerate(report["trials"]):
        found = trial["measured"]
        label = "plans tried" if number == 0 else None
        axes.scatter(found["seconds_median"], found["psnr_db_mean"], color="#2a6f97", s=30, label=label)
    marks = {"paper": ("#e07a5f", "paper's fixed setting"), "shipped": ("#6a994e", "shipped plan")}
    for name, other in report["others"].items():
        colour, label = marks[name]
        axes.scatter(other["seconds_median"], other["psnr_db_mean"], color=colour, s=55, label=label)
    held = report["held_out"]
    place = held["seconds_median"], min(held["psnr_db_mean"], 60.0)
    axes.scatter(*place, marker="*", s=170, color="black", label="chosen, held-out images")
    least = report["budget"]["min_psnr"]
    if least is not None:
        axes.axhline(least, color="#c33", linestyle="--", linewidth=1, label="budget")
    axes.set(xlabel="seconds an image", ylabel="PSNR against dense (dB)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def _curves(axes: Any, plan: sparvar.Plan, report: dict[str, Any], what: str) -> None:
    last = [site for site in report["sites"] if site["scale"] == plan.scales]
    decisions = {name.split("/")[1] for site in last for name in site["kept"] if name.startswith("cs4a")}
    decision = str(plan.decision_scale) if str(plan.decision_scale) in decisions else sorted(decisions, key=int)[0]
    for site in last:
        names = [name for name in site["kept"] if name.startswith(f"cs4a/{decision}/{plan.index_map}/")]
        points = sorted((100 * site["kept"][name], site[what][name]) for name in names)
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", ms=3, label=f"layer {site['layer']}")
    axes.set(xlabel=f"keys kept (%), decided at scale {decision}, {plan.index_map} map", ylabel=what.replace("_", " "))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncol=2)


def _errors(figure: Any, plan: sparvar.Plan, report: dict[str, Any]) -> None:
    _curves(figure.add_subplot(), plan, report, "relative_error")


def _recall(figure: Any, plan: sparvar.Plan, report: dict[str, Any]) -> None:
    _curves(figure.add_subplot(), plan, report, "recall")


def _used(plan: sparvar.Plan, site: dict[str, Any], ladders: int) -> float | None:
    """Relative error of the candidate that the plan runs at a site, or None where it is dense there."""
    scale, layer = site["scale"], site["layer"]
    if plan.kind(scale, layer) != "sparse":
        return None
    if plan.layers[layer] == "csla":
        share = plan.kept_share(scale, "csla")
        near = [f"csla/{number}" for number in range(ladders)]
        # Ladders differ in their share of keys, and the plan keeps exactly that of one.
        name = min(near, key=lambda one: abs(site["kept"][one] - (share or 0.0)))
        return float(site["relative_error"][name])
    budget = plan.cs4a[scale].budget
    first = plan.cs4a[min(plan.cs4a)].budget
    ending = f"{first:g}" if plan.output_correction else "-"
    return float(site["relative_error"][f"cs4a/{plan.decision_scale}/{plan.index_map}/{budget:g}/{ending}"])


def _map(figure: Any, plan: sparvar.Plan, report: dict[str, Any]) -> None:
    scales = sorted({site["scale"] for site in report["sites"]})
    layers = len(plan.layers)
    ladders = sum(name.startswith("csla/") for name in report["sites"][-1]["kept"])
    entropy = [[0.0] * len(scales) for _ in range(layers)]
    errors: list[list[float]] = [[float("nan")] * len(scales) for _ in range(layers)]
    for site in report["sites"]:
        at = scales.index(site["scale"])
        entropy[site["layer"]][at] = sum(site["entropy"]) / len(site["entropy"])
        used = _used(plan, site, ladders)
        errors[site["layer"]][at] = float("nan") if used is None else used
    for number, (title, values, colours) in enumerate(
        (("entropy (nats)", entropy, "viridis"), ("relative error of the plan", errors, "magma_r")), start=1
    ):
        axes = figure.add_subplot(1, 2, number)
        drawn = axes.imshow(values, aspect="auto", cmap=colours)
        axes.set(title=title, xlabel="scale", ylabel="layer")
        axes.set_yticks(range(layers))
        axes.set_xticks(range(len(scales)), [str(scale) for scale in scales])
        figure.colorbar(drawn, ax=axes)
