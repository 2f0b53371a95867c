"""Time against PSNR of everything that `sparvar bench methods` compared: ``python benchmarks/methods_figure.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RESULT = Path(__file__).parent / "results" / "methods-cpu.json"
FIGURE = Path(__file__).parents[1] / "docs" / "methods.png"
OURS = ("sparvar", "mixture")


def family(row: dict[str, Any]) -> str:
    """What a row is drawn as."""
    if row["method"].startswith(OURS):
        return "sparvar"
    return "published, scales skipped" if row.get("skips") else "published"


PLACES = [(6, 4, "left"), (-6, 4, "right"), (6, -10, "left"), (-6, -10, "right"), (6, 14, "left"), (-6, 14, "right")]
"""Where a name may stand beside its point, in points; the first place that is free."""


def label(figure: Any, axes: Any, rows: list[dict[str, Any]]) -> None:
    """Name every point where no other name or point is."""
    points = {row["method"]: (row["speedup"]["median"], row["psnr_db_mean"]) for row in rows}
    taken = [axes.transData.transform(at) for at in points.values()]
    boxes: list[Any] = []
    for name, at in sorted(points.items(), key=lambda pair: pair[1]):
        for x, y, side in PLACES:
            text = axes.annotate(name, at, xytext=(x, y), textcoords="offset points", ha=side, fontsize=7.5)
            box = text.get_window_extent(figure.canvas.get_renderer())
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in boxes) and not any(box.contains(*p) for p in taken):
                break
            if (x, y, side) != PLACES[-1]:
                text.remove()
        boxes.append(box)


def main(
    result: Annotated[Path, typer.Option(help="What `sparvar bench methods --json` wrote.")] = RESULT,
    out: Annotated[Path, typer.Option(help="PNG.")] = FIGURE,
) -> None:
    """Draw the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in json.loads(result.read_text())["rows"] if row.get("psnr_db_mean")]
    styles = {"published": ("o", "#777"), "published, scales skipped": ("s", "#c33"), "sparvar": ("D", "#06c")}
    figure, axes = plt.subplots(figsize=(9.5, 5.6), dpi=130)
    for name, (marker, colour) in styles.items():
        points = [(row["speedup"]["median"], row["psnr_db_mean"]) for row in rows if family(row) == name]
        axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=name, s=38, zorder=3)
    axes.axhline(29, color="#bbb", lw=1, ls=":")
    axes.set_xlabel("times faster than eager dense (median over images)")
    axes.set_ylabel("PSNR against dense images of the same seeds (dB, mean)")
    axes.margins(x=0.14)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    label(figure, axes, rows)
    figure.savefig(out)
    print(out)


if __name__ == "__main__":
    typer.run(main)
