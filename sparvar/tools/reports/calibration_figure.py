"""What the figures of `calibration.html` share: colours, one font size, and drawing to a PNG inside the page."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sparvar.scale_plans import Plan

Report = dict[str, Any]
Draw = Callable[[Any], None]
"""Draws into a matplotlib figure; its types are not named since the package may be missing."""

INK, SOFT, LINE = "#1c1e22", "#6b7280", "#d5dae0"
ALARM = "#b42318"
"""What was asked for, and thresholds."""
KINDS = {"dense": "#e6e9ed", "decide": "#f4c65a", "cs4a": "#0f766e", "csla": "#2b6cb0"}
ON_KIND = {"dense": SOFT, "decide": INK, "cs4a": "white", "csla": "white"}
OTHERS = {"paper": ("#d97706", "^", "the paper's fixed setting"), "shipped": ("#7c3aed", "D", "the shipped plan")}
CLASSES = {"detail": KINDS["cs4a"], "ambiguous": "#b6bdc7", "global": KINDS["csla"]}
RHO, ALPHA = "\N{GREEK SMALL LETTER RHO}", "\N{GREEK SMALL LETTER ALPHA}"
AMOUNT = "YlGnBu"
LOSS = "OrRd"
WIDTH = 9.6
"""Inches of every figure; the page shows 100 pixels for each."""
DPI = 160

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: its heading.
        text: what to see in the figure, or why there is none.
        alt: the figure in a sentence.
        draw: draws the figure, or None where the report lacks what it shows.
        height: inches of the figure.
    """

    title: str
    text: str
    alt: str = ""
    draw: Draw | None = None
    height: float = 3.8


@contextlib.contextmanager
def drawn(section: Section) -> Iterator[Any]:
    """The section's matplotlib figure, to be used inside the context, where the style holds."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert section.draw is not None
    # A figure of its own, not pyplot's: the caller's backend and open figures stay as they are.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, section.height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        section.draw(figure)
        yield figure


def png(section: Section) -> str:
    """The section's figure as base64 of a PNG file."""
    data = io.BytesIO()
    with drawn(section) as figure:
        figure.savefig(data, format="png")
    return base64.b64encode(data.getvalue()).decode()


def layer_colours(layers: int) -> tuple[Any, Any]:
    """(colour of a layer's number, what a colour bar is made of): dark is early, light is late."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    # Viridis without its yellow, which does not show on white.
    shades = ListedColormap(colormaps["viridis"]([0.85 * step / 255 for step in range(256)]))
    scale = ScalarMappable(Normalize(0, max(1, layers - 1)), shades)
    return scale.to_rgba, scale


def layer_bar(figure: Any, axes: Any, mappable: Any, layers: int) -> None:
    """A colour bar that says which colour is which layer, where there is more than one."""
    from matplotlib.ticker import MaxNLocator

    if layers == 1:
        return
    bar = figure.colorbar(mappable, ax=axes, label="layer", pad=0.01, aspect=30, ticks=MaxNLocator(integer=True))
    bar.outline.set_visible(False)


def grid_of_scales(axes: Any, plan: Plan, scales: list[int]) -> None:
    """Ticks at whole scales."""
    axes.set_xticks(scales, [str(scale) for scale in scales])
    axes.set_xlabel("scale")


def layer_ticks(axes: Any, layers: int) -> None:
    """Rows are layers, the first one on top; every layer has its number up to 14, then every second or fifth."""
    step = 1 if layers <= 14 else 2 if layers <= 48 else 5
    axes.set_yticks(range(0, layers, step))
    axes.set_ylabel("layer")


def bare(axes: Any) -> None:
    """No frame and no tick marks: for maps."""
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
