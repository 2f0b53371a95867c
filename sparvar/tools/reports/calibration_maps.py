"""Figures of `calibration.html` that are maps: entropy in the image, layers by scales, and the graph of decisions."""

from __future__ import annotations

import math
from typing import Any

from sparvar.scale_plans import Plan
from sparvar.tools.reports.calibration_facts import late_scales, mean, own_candidate
from sparvar.tools.reports.calibration_figure import (
    AMOUNT,
    CLASSES,
    INK,
    KINDS,
    LINE,
    LOSS,
    ON_KIND,
    SOFT,
    WIDTH,
    Report,
    Section,
    bare,
    grid_of_scales,
    layer_ticks,
)
from sparvar.tools.reports.text import numbers

MOST_MAPS = 12


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of 0..count-1, the first and the last among them, evenly spread."""
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


def entropy_maps(plan: Plan, report: Report) -> Section:
    """Entropy of every query at its place, for some layers."""
    title = "Entropy over the image"
    pruning = report.get("pruning") or {}
    maps, classes = pruning.get("entropy_maps"), pruning.get("classes") or []
    if not maps:
        return Section(title, "Entropy maps were not taken.")
    shown = evenly(len(maps), MOST_MAPS)
    across = min(6, len(shown))
    down = math.ceil(len(shown) / across)

    def draw(figure: Any) -> None:
        values = [value for layer in shown for row in maps[layer] for value in row]
        low, high = min(values), max(values)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        drawn = None
        for axes, layer in zip(panels, shown, strict=False):
            drawn = axes.imshow(maps[layer], cmap=AMOUNT, vmin=low, vmax=high)
            name = classes[layer] if layer < len(classes) else ""
            axes.set_title(f"{layer} {name}".rstrip(), color=INK if name == "ambiguous" else CLASSES.get(name, INK))
            axes.set_xticks([])
            axes.set_yticks([])
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        bar = figure.colorbar(drawn, ax=list(panels), label="entropy (nats)", pad=0.01, aspect=30)
        bar.outline.set_visible(False)

    text = f"Mean over heads at scale {pruning.get('representative')}, with the layer's number and class"
    text += f"; {len(shown)} of {len(maps)} layers." if len(shown) < len(maps) else "."
    return Section(title, text, f"Entropy maps of layers {numbers(shown)}.", draw, 0.25 + 1.65 * down)


SKIPPED = "not drawn"
"""What the map says of scales that the plan skips."""


def _cell(plan: Plan, scale: int, layer: int) -> tuple[str, str]:
    """(key of the colour, text) of a site."""
    kind = plan.attention_kind(scale, layer)
    if scale > plan.drawn:
        return SKIPPED, "\N{EN DASH}"
    if kind != "sparse":
        return kind, ""
    if plan.layers[layer] == "cs4a":
        return "cs4a", f"{100 * plan.cs4a[scale].budget:.3g}%"
    side = plan.csla[scale].windows.get(scale)
    return "csla", f"w{side}" if side else "sinks"


def assignment(plan: Plan, report: Report) -> Section:
    """What runs at every layer and scale, and what it loses there."""
    title = "What runs where, and what it loses there"
    layers, scales = len(plan.layers), list(range(1, plan.scales + 1))
    sparse = sorted({k for k in scales for layer in range(layers) if plan.attention_kind(k, layer) == "sparse"})
    if not sparse:
        return Section(title, "Every layer is dense at every scale, and loses nothing.")
    shown = [k for k in late_scales(report) if k in sparse]
    errors: dict[tuple[int, int], float] = {}
    for site in report.get("sites") or ():
        own = own_candidate(plan, site) if site["scale"] in shown else None
        if own is not None:
            errors[site["layer"], site["scale"]] = 100 * site["relative_error"][own]
    unknown = sum(plan.attention_kind(k, layer) == "sparse" for k in scales for layer in range(layers)) - len(errors)

    def draw(figure: Any) -> None:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        wide = [len(scales), 1.15 * max(3, len(shown))] if errors else [1]
        panels = figure.subplots(1, len(wide), width_ratios=wide, squeeze=False)[0]
        colours = {**KINDS, SKIPPED: "white"}
        names = list(colours)
        cells = [[_cell(plan, scale, layer) for scale in scales] for layer in range(layers)]
        axes = panels[0]
        axes.imshow(
            [[names.index(kind) for kind, _ in row] for row in cells],
            aspect="auto",
            cmap=ListedColormap(list(colours.values())),
            vmin=-0.5,
            vmax=len(names) - 0.5,
        )
        for layer, row in enumerate(cells):
            for at, (kind, text) in enumerate(row):
                axes.text(at, layer, text, ha="center", va="center", color=ON_KIND.get(kind, SOFT))
        axes.set_title("Assignment")
        _frame(axes, scales, layers)
        used = {kind for row in cells for kind, _ in row}
        figure.legend(
            handles=[Patch(facecolor=colours[name], edgecolor=LINE, label=name) for name in names if name in used],
            loc="outside lower center",
            ncols=len(names),
        )
        if errors:
            _losses(panels[1], errors, shown, layers)

    text = "Dense sites attend to every key."
    if "cs4a" in plan.layers:
        text += " Deciding sites do so too, and choose columns. cs4a: the share of keys that mapped columns keep."
    if "csla" in plan.layers:
        text += " csla: the side of the window at the scale itself; earlier scales have windows of their own."
    windows = [f"{entry.window} at scale {scale}" for scale, entry in plan.cs4a.items() if entry.window]
    text += f" cs4a also keeps windows: {', '.join(windows)}." if windows else ""
    if not errors:
        text += " The error that this makes was not measured with these settings."
    else:
        text += " Right: relative error of the output in %, of what the plan runs."
        text += f" {unknown} blank sparse sites run settings that were not measured." if unknown else ""
    count = {policy: plan.layers.count(policy) for policy in dict.fromkeys(plan.layers)}
    alt = "Policies of layers: " + ", ".join(f"{number} {policy}" for policy, number in count.items())
    return Section(title, text, f"{alt}.", draw, 1.15 + layers * (0.3 if layers <= 14 else 0.2))


def _frame(axes: Any, scales: list[int], layers: int) -> None:
    axes.set_xticks(range(len(scales)), [str(scale) for scale in scales])
    axes.set_xlabel("scale")
    layer_ticks(axes, layers)
    axes.set_xticks([at - 0.5 for at in range(1, len(scales))], minor=True)
    axes.set_yticks([at - 0.5 for at in range(1, layers)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    bare(axes)


def _losses(axes: Any, errors: dict[tuple[int, int], float], scales: list[int], layers: int) -> None:
    most = max(errors.values()) or 1.0
    values = [[errors.get((layer, scale), math.nan) for scale in scales] for layer in range(layers)]
    axes.imshow(values, aspect="auto", cmap=LOSS, vmin=0, vmax=most)
    for (layer, scale), error in errors.items():
        ink = "white" if error > 0.6 * most else INK
        text = f"{error:.0f}" if error >= 9.95 else f"{error:.1f}"
        axes.text(scales.index(scale), layer, text, ha="center", va="center", color=ink)
    axes.set_title("Relative error (%)")
    _frame(axes, scales, layers)
    axes.set_ylabel("")


FEWEST_COLUMNS = 5
"""Scales that the graph shows at least; dense ones before them are left out."""


def decisions(plan: Plan, report: Report) -> Section:
    """Which decision serves which site."""
    title = "Which decision serves which site"
    record = report.get("decisions")
    if record is None:
        return Section(title, "The report holds no graph of decisions.")
    problems = list(record.get("problems") or ())
    nodes = sorted((tuple(node) for node in record["nodes"]), key=str)
    if not nodes:
        return Section(title, "Nothing is decided and nothing is sparse: the graph is empty.")
    layers = len(plan.layers)
    first = max(1, min(min(node[-1] for node in nodes), plan.scales - FEWEST_COLUMNS + 1))
    scales = list(range(first, plan.scales + 1))
    shared = any(node[0] == "windows" for node in nodes)
    shelf, row = _shelf(plan), 0.42 if layers <= 14 else 0.22

    def place(node: tuple[Any, ...]) -> tuple[float, float]:
        """Scale and layer; shared windows on a shelf of theirs, corrections between decision and sites."""
        if node[0] == "windows":
            return node[1], shelf
        return (node[2] + 0.4, node[1] - 0.28) if node[0] == "correction" else (node[2], node[1])

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        dots = [(k, layer) for k in scales for layer in range(layers) if plan.attention_kind(k, layer) == "dense"]
        axes.scatter([x for x, _ in dots], [y for _, y in dots], color="#b6bdc7", s=6, zorder=1, label="dense site")
        for maker, user in record["edges"]:
            colour = {"windows": KINDS["csla"], "correction": "#b7791f"}.get(maker[0], SOFT)
            (x, y), (at, level) = place(tuple(maker)), place(tuple(user))
            # Along a row arrows bend past the sites between, by less than half a row; down a column they run through.
            bend = f"arc3,rad={-row * len(scales) / (WIDTH * (at - x)) if at - x > 1 else 0}"
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "mutation_scale": 7, "shrinkB": 3.5}
            axes.annotate("", (at, level), (x, y), arrowprops={**arrow, "connectionstyle": bend}, zorder=2)
        for name, (colour, marker, size, label) in MARKS.items():
            found = [
                place(node) for node in nodes if (plan.layers[node[1]] if node[0] == "sparse" else node[0]) == name
            ]
            if found:
                area = size if layers <= 14 else 0.55 * size
                mark = {"marker": marker, "s": area, "edgecolor": INK, "lw": 0.6, "zorder": 3, "label": label}
                axes.scatter([x for x, _ in found], [y for _, y in found], color=colour, **mark)
        layer_ticks(axes, layers)
        if shared:
            rows = {float(tick): f"{tick:.0f}" for tick in axes.get_yticks()} | {shelf: "windows"}
            axes.set_yticks(list(rows), list(rows.values()))
        axes.set_ylim(max(layers - 0.4, shelf + 0.6), min(-0.6, shelf - 0.6 if shared else 0))
        axes.set_xlim(first - 0.4, plan.scales + 0.4)
        grid_of_scales(axes, plan, scales)
        bare(axes)
        figure.legend(loc="outside lower center", ncols=3)

    text = "Arrows go from what is made to the sites that use it."
    if first > 1:
        text += f" Scales 1 to {first - 1} are dense throughout and left out."
    if problems:
        text += f" This graph has problems: {'; '.join(problems)}."
    else:
        text += " Checked: no cycle, one decision for every cs4a site, and none that serves nothing."
    made = sum(node[0] == "decide" for node in nodes)
    alt = f"{made} decisions and the {sum(node[0] == 'sparse' for node in nodes)} sparse sites they and windows serve."
    return Section(title, text, alt, draw, 1.3 + (layers + shared) * row)


MARKS = {
    "decide": (KINDS["decide"], "o", 52, "decides: dense, and chooses columns"),
    "correction": (KINDS["decide"], "D", 24, "output correction"),
    "cs4a": (KINDS["cs4a"], "o", 52, "cs4a site"),
    "windows": (KINDS["csla"], "s", 40, "windows of a scale, made once"),
    "csla": (KINDS["csla"], "o", 52, "csla site"),
}
"""(colour, marker, size, label) of a kind of node."""


def _shelf(plan: Plan) -> float:
    """The row of shared windows: at the side of their layers, so that their lines cross as few others as can be."""
    local, mapped = ([layer for layer, name in enumerate(plan.layers) if name == kind] for kind in ("csla", "cs4a"))
    above = not local or (mapped and mean(local) < mean(mapped))
    return -1.0 if above else float(len(plan.layers))
