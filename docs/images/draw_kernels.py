"""Draw the pictures of docs/kernels.md: python docs/draw_kernels.py (needs matplotlib)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle

FOLDER = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY, LIGHT = "#3b6fb6", "#e08a2c", "#4c9a5b", "#9a9a9a", "#e6e6e6"


def panel(axes: Axes, title: str, width: float, height: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=9)


def box(axes: Axes, x: float, y: float, w: float, h: float, colour: str, line: str = "white", lw: float = 0.5) -> None:
    axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor=line, linewidth=lw))


def arrow(figure: plt.Figure, start: tuple[Axes, float, float], end: tuple[Axes, float, float]) -> None:
    figure.add_artist(
        ConnectionPatch(
            start[1:], end[1:], "data", "data", axesA=start[0], axesB=end[0], arrowstyle="->", color=GREY, linewidth=1.2
        )
    )


def grid_of_tiles(axes: Axes, height: int, width: int, tile_h: int, tile_w: int, chosen: tuple[int, int]) -> None:
    for y in range(height):
        for x in range(width):
            mine = (y // tile_h, x // tile_w) == chosen
            box(axes, x, y, 1, 1, BLUE if mine else LIGHT)
    for y in range(0, height, tile_h):
        for x in range(0, width, tile_w):
            h, w = min(tile_h, height - y), min(tile_w, width - x)
            axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=1))


def column_sparse() -> None:
    figure, (a, b, c, d) = plt.subplots(1, 4, figsize=(11, 3.6), width_ratios=[3.4, 1, 1.2, 2.4])
    panel(a, "queries: a 20x36 grid in tiles of 8x16\none program per tile, edges ragged", 36, 20)
    grid_of_tiles(a, 20, 36, 8, 16, (1, 1))
    panel(b, "keys: T rows\nof D numbers", 8, 40)
    kept = [*range(6), 11, 13, 14, 18, 19, 20, 24, 26, 29, 30, 33, 35]
    for y in range(40):
        box(b, 0, y, 8, 1, ORANGE if y in kept else LIGHT)
    panel(c, "one step: 64 rows\ngathered by the list", 8, 40)
    step = kept[6:14]
    for i, y in enumerate(step):
        box(c, 0, 12 + 2 * i, 8, 2, ORANGE)
        arrow(figure, (b, 8, y + 0.5), (c, 0, 13 + 2 * i))
    panel(d, "scores [128, 64], from them weights;\noutput [128, D] stays in registers", 26, 40)
    for y in range(16):
        for x in range(8):
            box(d, 1 + x, 10 + y, 1, 1, BLUE if (x + y) % 3 else "#8fb0dd")
        box(d, 14, 10 + y, 11, 1, GREEN)
    d.text(5, 8.5, "scores", ha="center", fontsize=8)
    d.text(19.5, 8.5, "+= weights x V part", ha="center", fontsize=8)
    arrow(figure, (c, 8, 20), (d, 1, 18))
    arrow(figure, (d, 9, 18), (d, 14, 18))
    save(figure, "kernel-column-sparse.png")


def attention_stats() -> None:
    figure, (a, b) = plt.subplots(1, 2, figsize=(11, 3.2), width_ratios=[2.2, 1.6])
    panel(a, "scores [N, T]: a program takes 128 queries and walks over the keys, 64 a step", 60, 20)
    for y in range(5):
        for x in range(15):
            colour = LIGHT if y != 2 else (BLUE if x < 7 else "#8fb0dd" if x > 7 else ORANGE)
            box(a, 4 * x, 4 * y, 4 if x < 14 else 2, 4, colour)
    a.annotate("", (60, 10), (29, 10), arrowprops={"arrowstyle": "->", "color": "black"})
    a.text(1, 10.4, "done", fontsize=8, color="white")
    a.text(58.2, 18.5, "ragged\nend", fontsize=7, ha="right")
    panel(b, "carried from step to step, per query", 40, 20)
    lines = [
        ("peak m", 1, "largest score so far"),
        ("total l", 1, r"$\sum\, e^{s-m}$"),
        ("energy E", 1, r"$\sum\, e^{s-m}(s-m)$;  m moves to m':  $e^{m-m'}(E + (m-m')\,l)$"),
        ("output", 9, r"$\sum\, e^{s-m}\, v$,  [128, D]"),
    ]
    for i, (name, width, meaning) in enumerate(lines):
        box(b, 7, 1 + 3.6 * i, width, 2.4, GREEN)
        b.text(6.5, 2.2 + 3.6 * i, name, ha="right", va="center", fontsize=8)
        b.text(8 + width, 2.2 + 3.6 * i, meaning, ha="left", va="center", fontsize=8)
    b.text(0, 18.5, r"end:  LSE = m + log l,   entropy = log l - E / l", fontsize=8, va="center")
    save(figure, "kernel-attention-stats.png")


def column_sums() -> None:
    figure, (a, b, c) = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[2.6, 2, 1.2])
    panel(a, "queries: with stride 2 every second row and column\nof the tile stands for the rest", 36, 20)
    grid_of_tiles(a, 20, 36, 8, 16, (1, 1))
    for y in range(8, 16, 2):
        for x in range(16, 32, 2):
            box(a, x, y, 1, 1, ORANGE)
    panel(b, "transposed scores of one step\n[64 keys, 128 queries]", 34, 30)
    for y in range(16):
        for x in range(16):
            box(b, 2 + 2 * x, 6 + y, 2, 1, ORANGE if (x * y) % 5 else "#f0bf88")
        b.annotate("", (33.5, 6.5 + y), (31, 6.5 + y), arrowprops={"arrowstyle": "->", "color": "black", "lw": 0.6})
    b.text(17, 25, "exp(score - LSE of the query),\nsummed along the queries: within a warp", ha="center", fontsize=8)
    panel(c, "sums [T] of the tile:\n1024 keys a program", 8, 30)
    for y in range(24):
        box(c, 1, 2 + y, 4, 1, GREEN if y < 7 else (ORANGE if y == 7 else LIGHT))
    c.text(5.5, 10, "this step", fontsize=8, va="center")
    arrow(figure, (b, 33.5, 14), (c, 1, 9.5))
    save(figure, "kernel-column-sums.png")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / name, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    column_sparse()
    attention_stats()
    column_sums()
