"""Time against PSNR of everything that `sparvar bench methods` compared: ``python benchmarks/methods_figure.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from matplotlib import pyplot as plt
from matplotlib.text import Text

matplotlib.use("Agg")
RESULT = Path(__file__).parent / "results" / "methods-cpu.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "methods.png"
OURS = ("sparvar", "mixture")


def family(row: dict[str, Any]) -> str:
    """What a row is drawn as."""
    if row["method"].startswith(OURS):
        return "sparvar"
    return "published, scales skipped" if row.get("skips") else "published"


STYLES = {
    "published": ("o", "#777"),
    "published, scales skipped": ("s", "#c33"),
    "sparvar": ("D", "#06c"),
}
"""Marker and colour of each family; names have their colour, too."""
SKIPPING = ", skipping"
"""What names of methods end in that also skip scales: the marker says it, the name need not."""
OFFSETS = [(x, y) for far in (1, 2, 3.2, 4.6) for x, y in ((6, 3 * far), (-6, 3 * far), (6, -7 * far), (-6, -7 * far))]
PLACES = [*OFFSETS, *((0, 10 * far) for far in (1, 2, 3)), *((0, -14 * far) for far in (1, 2, 3))]
"""Where a name may stand beside its point, in points, the nearest first; the first place that is free."""


def label(figure: Any, axes: Any, rows: list[dict[str, Any]]) -> None:
    """Name every point where no other name or point is; a name that stands far away gets a line to its point."""
    points = {row["method"]: (row["speedup"]["median"], row["psnr_db_mean"], family(row)) for row in rows}
    taken = [axes.transData.transform(at[:2]) for at in points.values()]
    boxes: list[Any] = [axes.get_legend().get_window_extent()]
    renderer = figure.canvas.get_renderer()
    # Crowded points first: they have the fewest places.
    near = {
        name: sum(abs(here - there).max() < 60 for there in taken) for name, here in zip(points, taken, strict=True)
    }
    for name, (x, y, kind) in sorted(points.items(), key=lambda pair: (-near[pair[0]], pair[1])):
        for place in PLACES:
            text = axes.annotate(
                name.removesuffix(SKIPPING),
                (x, y),
                xytext=place,
                textcoords="offset points",
                ha={6: "left", -6: "right", 0: "center"}[place[0]],
                fontsize=7,
                color="#333" if kind == "published" else STYLES[kind][1],
                arrowprops={"arrowstyle": "-", "color": "#aaa", "lw": 0.5} if abs(place[1]) > 12 else None,
            )
            # Of the words alone: the line to the point may cross what it likes.
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in boxes) and not any(box.contains(*p) for p in taken):
                break
            if place != PLACES[-1]:
                text.remove()
        boxes.append(box)


def main(
    result: Annotated[Path, typer.Option(help="What `sparvar bench methods --json` wrote.")] = RESULT,
    out: Annotated[Path, typer.Option(help="PNG.")] = FIGURE,
) -> None:
    """Draw the figure."""
    rows = [row for row in json.loads(result.read_text())["rows"] if row.get("psnr_db_mean")]
    if not rows:
        raise typer.BadParameter(f"{result} has no images to judge: give a file made without --shape")
    figure, axes = plt.subplots(figsize=(11, 7), dpi=130)
    for name, (marker, colour) in STYLES.items():
        points = [(row["speedup"]["median"], row["psnr_db_mean"]) for row in rows if family(row) == name]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=name, s=34, zorder=3)
    axes.axhline(29, color="#bbb", lw=1, ls=":")
    axes.set_xscale("log")
    ticks = [each for each in (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20) if inside_of(rows, each)]
    axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times faster than eager dense (median over images)")
    axes.set_ylabel("PSNR against dense images of the same seeds (dB, mean)")
    axes.margins(x=0.14, y=0.08)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    label(figure, axes, rows)
    figure.savefig(out)
    print(out)


def inside_of(rows: list[dict[str, Any]], tick: float) -> bool:
    """Whether a tick is near what was measured."""
    speeds = [row["speedup"]["median"] for row in rows]
    return min(speeds) / 1.3 < tick < max(speeds) * 1.3


if __name__ == "__main__":
    typer.run(main)
