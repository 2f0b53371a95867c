"""Sections of `calibration.html` about what a plan may leave out beside columns: rows, tokens, scales, keys.

Each function gives a `Section`, or None where calibration did not look at it.
"""

from __future__ import annotations

from typing import Any

from sparvar.evaluate.metrics import psnr_of_mse
from sparvar.scale_plans import Plan
from sparvar.tools.reports.calibration_figure import ALARM, INK, KINDS, OTHERS, SOFT, Report, Section
from sparvar.tools.reports.text import plural

SMALL: dict[str, Any] = {
    "fontsize": 7.5,
    "color": SOFT,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
}
"""Names of points, on paper so that lines do not cross them."""
KEPT = {
    "guidance": (KINDS["csla"], "o", "unconditional rows"),
    "tokens": (KINDS["cs4a"], "s", "tokens"),
    "scales": (OTHERS["paper"][0], "^", "scales, or scales and tokens"),
}
"""Colour, marker and name of what is left out."""


def left_out(plan: Plan, report: Report) -> Section | None:
    """Time that every reduction saves, against the images it leaves."""
    found = report.get("left_out")
    if not found or not found["reductions"]:
        return None
    whole = sum(found["blocks_seconds"].values())
    groups: dict[str, list[tuple[float, float, str]]] = {name: [] for name in KEPT}
    for each in found["reductions"]:
        kind = "scales" if each.get("skip") else "tokens" if each["pruned"] else "guidance"
        share = 100 * each["saves_seconds"] / whole
        groups[kind].append((share, psnr_of_mse(max(each["mse"], 1e-10)), _name(each, plan)))
    chosen = report["budget"].get("min_psnr")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for kind, points in groups.items():
            if not points:
                continue
            colour, marker, label = KEPT[kind]
            shares, quality, _ = zip(*points, strict=True)
            axes.scatter(shares, quality, color=colour, marker=marker, s=38, zorder=3, label=label)
        for left, high, name in _apart([point for points in groups.values() for point in points]):
            axes.annotate(name, (left, high), (5, 4), textcoords="offset points", zorder=2.5, **SMALL)
        if chosen is not None:
            axes.axhline(chosen, color=ALARM, linestyle="--", linewidth=1.2, label="budget")
        axes.margins(x=0.12, y=0.12)
        axes.set(xlabel="share of the blocks' time that it saves (%)", ylabel="PSNR with nothing else left out (dB)")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=4)

    count = sum(map(len, groups.values()))
    return Section(
        "What else can be left out",
        "Each point is a reduction alone, with dense attention: up and to the right is better. Errors add up, so that"
        " a plan near the budget takes those that cost least for what they save. Names say what is left out: guidance"
        " from a scale on, or the share of a scale's tokens that is computed, and what the rest is made from.",
        f"PSNR against time saved of {plural(count, 'reduction')}.",
        draw,
        4.8,
    )


def _name(each: dict[str, Any], plan: Plan) -> str:
    if each["conditional_from"]:
        return f"guidance from {each['conditional_from']}"
    parts = [f"skip {each['skip']}"] if each.get("skip") else []
    if each["pruned"]:
        kept = ", ".join(f"{100 * share:.3g} % of {scale}" for scale, share in each["pruned"]["keep"])
        merged = "merged to " if each["pruned"].get("fill") == "merge" else ""
        parts.append(f"{merged}{kept}, from {each['pruned']['source']}")
    return ", ".join(parts)


def _apart(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Of points whose names would lie on each other, the first."""
    wide = max(point[0] for point in points) - min(point[0] for point in points) or 1.0
    high = max(point[1] for point in points) - min(point[1] for point in points) or 1.0
    kept: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: -each[1]):
        if all(abs(point[0] - x) > 0.16 * wide or abs(point[1] - y) > 0.06 * high for x, y, _ in kept):
            kept.append(point)
    return kept


def compression(plan: Plan, report: Report) -> Section | None:
    """Methods that compress the KV cache, at the share that was asked for."""
    found = report.get("kv")
    if not found:
        return None
    tried = sorted(found["tried"].items(), key=lambda pair: pair[1]["psnr_db"])
    budget = report["budget"].get("min_psnr")
    best = max(tried, key=lambda pair: pair[1]["psnr_db"])[0]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        names = [name for name, _ in tried]
        values = [each["psnr_db"] for _, each in tried]
        # Points, not bars: the axis does not begin at nothing.
        axes.scatter(values, names, color=[KINDS["cs4a"] if name == best else SOFT for name in names], s=60, zorder=3)
        axes.grid(axis="x")
        axes.margins(y=0.2)
        for row, (_, each) in enumerate(tried):
            text = f"{each['psnr_db']:.1f} dB, {100 * each['held_share']:.1f} % held"
            axes.text(each["psnr_db"], row, f"   {text}", va="center", color=INK)
        if budget is not None:
            axes.axvline(budget, color=ALARM, linestyle="--", linewidth=1.2)
        low = min([*values, *([budget] if budget is not None else [])]) - 2
        axes.set(xlim=(low, max(values) + 3), xlabel="PSNR with nothing else left out (dB)")

    asked = 100 * report["budget"]["max_kv"]
    return Section(
        "What the KV cache holds",
        f"At most {asked:.3g} % of whole caches were to be held between scales. Each point is a method at that size,"
        f" with dense attention over what it leaves; the plan goes on with {best}, and with windows and dropped"
        " guidance where they save more.",
        f"PSNR of {plural(len(tried), 'method')} that compress the cache.",
        draw,
        1.0 + 0.45 * len(tried),
    )


def choices(plan: Plan, report: Report) -> Section | None:
    """Images by the two features that decide how many scales they need."""
    found = report.get("per_image")
    if not found:
        return None
    title = "What an image needs"
    images = found.get("images")
    if not images:
        return Section(title, f"No choice per image: {found['why']}.")
    skipped, best = found["skipped"], report["budget"]
    end = "adopted" if found["adopted"] else f"not adopted: {found['why']}"
    passes = [_enough(image, best) for image in images]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        shades = [KINDS["dense"], *(OTHERS["paper"][0], KINDS["cs4a"], KINDS["csla"])]
        for count in sorted({*skipped, *passes}):
            some = [
                (image, chosen) for image, need, chosen in zip(images, passes, skipped, strict=True) if need == count
            ]
            if some:
                places = zip(*(image["features"] for image, _ in some), strict=True)
                label = f"could do without {plural(count, 'scale')}" if count else "needs every scale"
                axes.scatter(*places, color=shades[count], edgecolor=SOFT, s=60, zorder=3, label=label)
        for image, chosen in zip(images, skipped, strict=True):
            axes.annotate(f"skips {chosen}", image["features"], (6, 5), textcoords="offset points", color=SOFT)
        axes.margins(0.15)
        axes.set(xlabel="change of edges in the scale of the decision", ylabel="share of high frequencies")
        axes.grid()
        figure.legend(loc="outside lower center", ncols=4)

    return Section(
        title,
        f"Each point is an image of the fit, after scale {found['scale']}; its colour says how many of the last scales"
        f" it could do without within the budget, its label how many the fitted model skips. The choice was {end}.",
        f"{plural(len(images), 'image')} by two features.",
        draw,
        4.2,
    )


def _enough(image: dict[str, Any], budget: dict[str, Any]) -> int:
    """How many scales an image could do without."""
    count = 0
    for number, value in enumerate(image["psnr"]):
        psnr = budget.get("min_psnr") is None or value >= budget["min_psnr"]
        if not psnr or (budget.get("min_ssim") is not None and image["ssim"][number] < budget["min_ssim"]):
            break
        count += 1
    return count
