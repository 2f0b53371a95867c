"""Figures of `calibration.html` with axes: quality against time, scales, layers, candidates, sinks and pruning.

Each function gives a `Section`; where the report lacks what it shows, the section says so and draws nothing.
"""

from __future__ import annotations

import math
from typing import Any

from sparvar.calibrate import candidate_text
from sparvar.scale_plans import Plan
from sparvar.tools.reports.calibration_facts import (
    by_scale,
    correction_budget,
    decibels,
    late_scales,
    mean,
    nearest_group,
    own_candidate,
)
from sparvar.tools.reports.calibration_figure import (
    ALARM,
    ALPHA,
    AMOUNT,
    CLASSES,
    INK,
    KINDS,
    OTHERS,
    RHO,
    SOFT,
    Report,
    Section,
    bare,
    grid_of_scales,
    layer_bar,
    layer_colours,
)
from sparvar.tools.reports.text import plural, seconds

HIGHEST_DB = 60.0
"""Images this close are the same to any eye: better ones are drawn here, so that the rest can be told apart."""


def front(plan: Plan, report: Report) -> Section:
    """Seconds against PSNR: what was predicted, tried and chosen."""
    title = "Quality against time"
    held = report["held_out"]
    if held.get("psnr_db_mean") is None or held.get("seconds_median") is None:
        return Section(title, "No generation was measured, so there is nothing to compare.")
    predicted = sorted((p["seconds"], p["psnr_db"]) for p in report.get("front") or ())
    tried = [trial["measured"] for trial in report.get("trials") or () if trial.get("measured")]
    dense = report["costs"]["dense_seconds"]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        if predicted:
            axes.plot(*zip(*predicted, strict=True), color=SOFT, linewidth=1.5, label="predicted Pareto front")
        if tried:
            at = [(found["seconds_median"], min(found["psnr_db_mean"], HIGHEST_DB)) for found in tried]
            axes.scatter(*zip(*at, strict=True), color=KINDS["cs4a"], s=30, zorder=3, label="plans tried")
        for name, other in (report.get("others") or {}).items():
            colour, marker, label = OTHERS.get(name, (SOFT, "s", name))
            place = other["seconds_median"], min(other["psnr_db_mean"], HIGHEST_DB)
            axes.scatter(*place, color=colour, marker=marker, s=60, zorder=4, label=label)
        place = held["seconds_median"], min(held["psnr_db_mean"], HIGHEST_DB)
        axes.scatter(*place, color=INK, marker="*", s=190, zorder=5, label="the chosen plan, new images")
        axes.axvline(dense, color=SOFT, linestyle=":", linewidth=1.2, label="dense")
        budget, label = report["budget"], "budget"
        for name, line in (("min_psnr", axes.axhline), ("max_seconds", axes.axvline)):
            if budget.get(name) is not None:
                line(budget[name], color=ALARM, linestyle="--", linewidth=1.2, label=label)
                label = "_again"
        axes.margins(y=0.12)
        axes.set(xlabel=f"seconds an image{', roofline' if report.get('target') else ''}", ylabel="PSNR (dB)")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=4)

    return Section(
        title,
        "Up and left is better. Each point is a plan that was run, against images of dense attention; the line is the"
        f" best the solver predicts. From {HIGHEST_DB:.0f} dB on images look the same and are drawn at that height.",
        f"PSNR against seconds: the chosen plan has {decibels(held['psnr_db_mean'])} dB in"
        f" {seconds(held['seconds_median'])} s, dense takes {seconds(dense)} s.",
        draw,
        4.6,
    )


def scales(plan: Plan, report: Report) -> Section:
    """Entropy and share of low-entropy queries by scale."""
    title = "Where attention becomes local: by scale"
    entropy, rho = by_scale(report, "entropy"), by_scale(report, "rho")
    if not entropy or not rho:
        return Section(title, "No scale was observed, so entropy and its spread are not known.")
    pruning = report.get("pruning") or {}
    decides = {int(scale): value for scale, value in (pruning.get("rho") or {}).items()}
    tau, start = pruning.get("tau"), pruning.get("start")

    def draw(figure: Any) -> None:
        colour, bar = layer_colours(len(plan.layers))
        panels = figure.subplots(1, 2)
        bold = {scale: mean(list(row.values())) for scale, row in rho.items()}
        for axes, found, middle in (
            (panels[0], entropy, {scale: mean(list(row.values())) for scale, row in entropy.items()}),
            (panels[1], rho, decides or bold),
        ):
            for layer in range(len(plan.layers)):
                points = [(scale, row[layer]) for scale, row in found.items() if layer in row]
                axes.plot([k for k, _ in points], [y for _, y in points], color=colour(layer), lw=0.8, alpha=0.6)
            middle = dict(sorted(middle.items()))
            axes.plot(list(middle), list(middle.values()), color=INK, linewidth=2.4, marker="o", markersize=3.5)
            grid_of_scales(axes, plan, list(found))
            axes.grid(axis="y")
        panels[0].set(title="Entropy H, mean over heads (nats)", ylim=(0, None))
        panels[1].set(title=f"Share of queries below the mean entropy, {RHO}", ylim=(0, 1))
        if tau is not None:
            panels[1].axhline(tau, color=ALARM, linestyle="--", linewidth=1.2)
            across = panels[1].get_yaxis_transform()
            panels[1].text(0.99, tau - 0.015, f"τ = {tau:.3f}", transform=across, ha="right", va="top", color=ALARM)
        if start is not None:
            panels[1].axvline(start, color=ALARM, linewidth=1.2)
            side, shift = ("right", -0.12) if start > max(rho) - 2 else ("left", 0.12)
            panels[1].text(start + shift, 0.96, f"D = scale {start}", color=ALARM, ha=side, va="top")
        layer_bar(figure, panels, bar, len(plan.layers))

    text = "Thin lines are layers, the bold one their mean."
    if tau is not None:
        reached = f"reached at scale D = {start}" if start is not None else "never reached, so no scale is pruned"
        text += f" Pruning may start where {RHO} reaches τ = {tau:.3f}, here {reached}."
        steps: dict[int | None, list[float]] = {}
        for one, at in pruning.get("depth") or ():
            steps.setdefault(at, []).append(one)
        others = [
            f"{values[0]:.2f} to {values[-1]:.2f} {'never' if at is None else f'at scale {at}'}"
            for at, values in steps.items()
        ]
        text += f" D by τ: {', '.join(others)}." if others else ""
    ends = [mean(list(entropy[scale].values())) for scale in (min(entropy), max(entropy))]
    alt = f"Mean entropy goes from {ends[0]:.1f} to {ends[1]:.1f} nats between scales {min(entropy)} and {max(entropy)}"
    return Section(title, text, f"{alt}; beside it the share of low-entropy queries by scale.", draw)


def layers(plan: Plan, report: Report) -> Section:
    """How one-sided each layer's entropy map is."""
    title = "What each layer looks at: first against second singular value"
    pruning = report.get("pruning") or {}
    ratio, classes = pruning.get("ratio"), pruning.get("classes")
    if not ratio or not classes:
        return Section(title, "Entropy maps were not taken, so layers are not classed as detail or global.")
    ratio = [value if value is not None else 1e6 for value in ratio]  # of a map of rank one, infinite
    beta = pruning.get("beta")
    scores = [math.exp(-beta * (value - 1)) for value in ratio] if beta is not None else []
    count = {name: classes.count(name) for name in CLASSES if name in classes}

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name in count:
            at = [layer for layer, found in enumerate(classes) if found == name]
            axes.bar(at, [ratio[layer] for layer in at], color=CLASSES[name], width=0.6, label=name)
        if max(ratio) > 10 * max(1.0, min(ratio)):
            axes.set_yscale("log")
        step = 1 if len(ratio) <= 40 else 5
        axes.set_xticks(range(0, len(ratio), step))
        axes.set(xlabel="layer", ylabel="σ₁ / σ₂", xlim=(-0.6, max(len(ratio) - 0.4, 5.6)))
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3)

    bands = []
    for name in count:
        band = [score for score, found in zip(scores, classes, strict=False) if found == name]
        span = f" (R {' to '.join(dict.fromkeys((f'{min(band):.2f}', f'{max(band):.2f}')))})" if band else ""
        bands.append(f"{plural(count[name], 'layer')} {name}{span}")
    with_beta = f", with β = {beta:.3g}" if beta is not None else ""
    text = (
        f"Of the entropy map at scale {pruning.get('representative')}. R = exp(-β(σ₁/σ₂ - 1)){with_beta}: near 1 the"
        f" layer draws detail and may be pruned, near 0 it is global and is kept, as ambiguous layers are."
        f" Here {', '.join(bands)}."
    )
    return Section(title, text, f"Bars of sigma 1 over sigma 2: {', '.join(bands)}.", draw, 3.2)


def curves(plan: Plan, report: Report) -> Section:
    """Recall and output error against kept keys."""
    title = "What keeping fewer keys costs: by layer"
    late = late_scales(report)
    scale = late[-1] if late else 0
    sites = [site for site in report.get("sites") or () if site["scale"] == scale and site.get("kept")]
    group = nearest_group(plan, scale, sites[0]["kept"]) if sites else []
    if not group:
        return Section(title, "No candidate was measured, so there is no curve of error against kept keys.")
    one = group[0]
    plain = [candidate_text(each) for each in group if each.correction is None]
    wanted = correction_budget(plan)
    corrected = [
        each
        for each in nearest_group(plan, scale, sites[0]["relative_error"])
        # At the scale after the decision the correction is made with that scale's own budget.
        if (each.decision, each.setting) == (one.decision, one.setting)
        and each.correction == (each.budget if scale == one.decision + 1 else wanted)
    ]
    lossy = [candidate_text(each) for each in corrected] if wanted is not None and corrected else plain
    base = {candidate_text(each): candidate_text(each.uncorrected) for each in [*group, *corrected]}

    def draw(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        colour, bar = layer_colours(len(plan.layers))
        panels = figure.subplots(1, 2)
        seen: list[float] = []
        size = 26 if len(sites) <= 14 else 13
        for site in sites:
            own, shade = own_candidate(plan, site), colour(site["layer"])
            for axes, what, names in ((panels[0], "recall", plain), (panels[1], "relative_error", lossy)):
                found = site.get(what) or {}
                points = sorted((100 * site["kept"][base[name]], 100 * found[name]) for name in names if name in found)
                axes.plot([x for x, _ in points], [y for _, y in points], color=shade, lw=1, alpha=0.8)
                seen += [y for _, y in points if axes is panels[1]]
                at = own if what == "relative_error" else base.get(own or "")
                if own is not None and at in found:
                    x = 100 * site["kept"][base.get(own, own)]
                    marker = "s" if own.startswith("csla") else "o"
                    look = {"marker": marker, "s": size, "edgecolor": INK, "linewidth": 0.5, "zorder": 4}
                    axes.scatter(x, 100 * found[at], color=[shade], **look)
        panels[0].set(title="Recall: softmax mass on the kept keys (%)", ylim=(0, 102))
        panels[1].set_title("Relative error of the output (%)")
        if seen and 0 < min(seen) < max(seen) / 20:
            panels[1].set_yscale("log")
            panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panels[1].yaxis.set_minor_locator(NullLocator())
            panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            panels[1].set_ylim(0, None)
        for axes in panels:
            axes.set(xlabel="kept keys (%)", xlim=(0, None))
            axes.grid()
        layer_bar(figure, panels, bar, len(plan.layers))

    setting = [f"{one.setting.index_map} map", plural(one.setting.sinks, "sink scale")]
    setting += [f"window {one.setting.window}"] if one.setting.window else []
    text = (
        f"At {plan.label(scale)}, decided at scale {one.decision}: {', '.join(setting)}"
        f"{', with output correction' if lossy is not plain else ''}."
        " Mean over heads and prompts."
    )
    text += " Dots are what the plan runs." if "cs4a" in plan.layers else ""
    text += " Squares are csla layers of the plan: they keep windows, not the columns of the curve." * (
        "csla" in plan.layers
    )
    alt = f"Recall and relative error of {plural(len(sites), 'layer')} against kept keys at scale {scale}."
    return Section(title, text, alt, draw)


def sinks(plan: Plan, report: Report) -> Section:
    """Mass on the leading scales and inside windows."""
    title = "Where the softmax mass lies: sinks and windows"
    last = late_scales(report)[-4:] or sorted({site["scale"] for site in report.get("sites") or ()})[-4:]
    sites = [site for site in report.get("sites") or () if site["scale"] in last]
    mass: dict[int, list[float]] = {}
    for scale in last:
        rows = [site["sink_mass"] for site in sites if site["scale"] == scale and site.get("sink_mass")]
        if rows:
            mass[scale] = [100 * mean(column) for column in zip(*rows, strict=False)]
    window = [site["window_mass"] for site in sites if site["scale"] == last[-1] and site.get("window_mass")]
    if not mass and not window:
        return Section(title, "The mass on sinks and in windows was not measured.")
    distances = sorted(window[0], key=int) if window else []
    sides = sorted({side for row in window[0].values() for side in row}, key=int) if window else []

    def leading(axes: Any) -> None:
        from matplotlib import colormaps

        for number, (scale, shares) in enumerate(mass.items()):
            shade = colormaps["Blues"](0.4 + 0.6 * (number + 1) / len(mass))
            axes.plot(
                range(1, len(shares) + 1), shares, color=shade, marker="o", markersize=3, label=f"at scale {scale}"
            )
        most = max(map(len, mass.values()))
        axes.set_xticks(range(1, most + 1))
        # The upper third is the legend's.
        high = 1.45 * max(max(shares) for shares in mass.values()) or 1.0
        axes.set(title="Mass on the leading scales (%)", xlabel="number of leading scales", ylim=(0, high))
        if plan.sink_scales:
            label = f"sinks: {plan.sink_scales}"
            axes.axvline(plan.sink_scales, ymax=0.69, color=ALARM, linestyle="--", linewidth=1.2, label=label)
        axes.grid(axis="y")
        axes.legend(loc="upper left", ncols=2)

    def around(axes: Any) -> None:
        values = [
            [100 * mean([row[d].get(side, math.nan) for row in window if d in row]) for side in sides]
            for d in distances
        ]
        most = max((value for row in values for value in row if not math.isnan(value)), default=1.0)
        axes.imshow(values, aspect="auto", cmap=AMOUNT, vmin=0, vmax=most or 1.0)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    ink = "white" if value > 0.6 * most else INK
                    text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
                    axes.text(x, y, text, ha="center", va="center", color=ink)
        axes.set_xticks(range(len(sides)), [f"{side}x{side}" for side in sides])
        axes.set_yticks(range(len(distances)), ["same" if int(d) == 0 else f"{d} before" for d in distances])
        axes.set(
            title=f"Mass in a window, of queries at scale {last[-1]} (%)", xlabel="window", ylabel="scale of the keys"
        )
        bare(axes)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, bool(mass) + bool(window), squeeze=False)[0]
        if mass:
            leading(panels[0])
        if window:
            around(panels[-1])

    says = []
    if mass:
        says.append(f"{'Left: w' if window else 'W'}hat sinks hold if the first scales are kept whole.")
    else:
        says.append("The mass on leading scales was not measured.")
    if window:
        says.append("Windows are centred on the query's place at the scale of the keys; mean over layers.")
    else:
        says.append("The mass in windows was not measured.")
    alt = f"Softmax mass on leading scales and in windows, for queries of scales {', '.join(map(str, last))}."
    return Section(title, " ".join(says), alt, draw, max(3.6, 0.24 * len(distances) + 1.2))


def pruning_curve(plan: Plan, report: Report) -> Section:
    """Image MSE against pruned tokens."""
    title = "Pruning tokens: image error against share"
    pruning = report.get("pruning") or {}
    points = sorted((100 * p["pruned_share"], p["image_mse"], p["alpha_max"]) for p in pruning.get("alpha_curve") or ())
    if not points:
        return Section(title, "Token pruning was not tried.")
    chosen = pruning.get("alpha")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=KINDS["cs4a"], marker="o", markersize=4)
        every = max(1, math.ceil(len(points) / 8))
        for number, (x, y, alpha) in enumerate(points):
            if number % every == 0:
                axes.annotate(f"{alpha:g}", (x, y), (0, 8), textcoords="offset points", ha="center")
        if chosen is not None:
            place = 100 * chosen["pruned_share"], chosen["image_mse"]
            axes.scatter(*place, marker="*", s=190, color=INK, zorder=4)
        if min(y for _, y, _ in points) > 0:
            axes.set_yscale("log")
        axes.margins(y=0.15)
        axes.set(xlabel="pruned queries (%)", ylabel="mean squared error of the image")
        axes.grid()

    text = (
        f"Predicted; no pass prunes yet. Numbers at the points are {ALPHA} max, the pruned share of the layers that may"
        f" be pruned at the last scale, for {ALPHA} min 0."
    )
    if chosen is not None:
        text += f" The star is the plan's {ALPHA} min {chosen['alpha_min']:g} and max {chosen['alpha_max']:g}."
    else:
        text += " None was chosen: tokens are not to be pruned."
    return Section(
        title, text, f"Mean squared error of the image at {plural(len(points), 'value')} of alpha max.", draw, 3.2
    )
