"""The page of a calibration: whole for models small and deep, and honest about what its report does not hold."""

from __future__ import annotations

import base64
import functools
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from sparvar.calibrate import candidate_text
from sparvar.scale_plans import Plan, held_share, local
from sparvar.tools.reports.calibration_facts import nearest_group, own_candidate
from sparvar.tools.reports.calibration_figure import DPI, WIDTH, drawn
from sparvar.tools.reports.calibration_page import SECTIONS, page
from sparvar.tools.reports.text import numbers, seconds
from tests.calibrate.reports import make_plan, make_report

Report = dict[str, Any]
VOID = {"meta", "img"}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Matplotlib warns of glyphs it lacks and layouts it gives up: neither may happen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes seconds."""
    monkeypatch.setattr("sparvar.tools.reports.calibration_page.png", lambda section: "")


class Reader(HTMLParser):
    """Checks that tags close in order, and collects images, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.addresses: list[str | None] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(plan: Plan, report: Report) -> Reader:
    text = page(plan, report)
    reader = Reader(text)
    assert all(address is not None and address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link", re.sub(r'"data:[^"]*"', "", text))
    return reader


@pytest.mark.parametrize("layers", [1, 6, pytest.param(40, marks=pytest.mark.slow)])
def test_a_whole_page(layers: int) -> None:
    plan = make_plan(layers)
    reader = read(plan, make_report(plan))
    assert len(reader.images) == len(SECTIONS) == 9
    for image in reader.images:
        assert image["alt"] and image["src"]
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        assert picture.width == round(WIDTH * DPI)
        assert abs(picture.width / picture.height - int(image["width"] or 0) / int(image["height"] or 0)) < 0.02
        assert len(picture.convert("L").getcolors() or []) > 5
    assert "a mean PSNR of at least 32 dB" in reader.text
    assert "33.30 dB on images that calibration had not seen" in reader.text
    assert "choose the keys that matter" in reader.text
    assert "It misses" not in reader.text
    assert "by a quick search with 3 images that check a plan and 3 held out" in reader.text
    assert "a standard error of 0.9 dB" in reader.text  # 1.5 dB of spread, by the root of three


def test_an_all_dense_plan_says_why() -> None:
    plan = make_plan(6, "dense")
    reader = read(plan, make_report(plan))
    assert len(reader.images) == 7  # neither an assignment nor a graph
    assert "no sparse plan that meets it, so the plan is all dense" in reader.text
    assert "all dense: no sparse plan met min_psnr 48" in reader.text
    assert "all dense: all dense" not in reader.text
    assert "the nearest plan that was run reached 46.0 dB" in reader.text
    assert "equal images" in reader.text and "standard error" not in reader.text
    assert "the graph is empty" in reader.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csla", "cs4a"])
@pytest.mark.parametrize("correction", [True, False])
def test_a_plan_of_one_policy(kind: str, correction: bool) -> None:
    plan = make_plan(6, kind, correction)
    reader = read(plan, make_report(plan, shipped=False))
    assert len(reader.images) == 9
    assert "the shipped plan" not in reader.text
    assert f"All layers ({kind})" in reader.text
    assert ("The output correction is added" in reader.text) == (correction and kind == "cs4a")
    assert "blank" not in reader.text


@functools.cache
def whole_text() -> str:
    """The words of a page that lacks nothing."""
    plan = make_plan(6)
    return read(plan, make_report(plan)).text


def dropped(name: str) -> Callable[[Report], None]:
    return lambda report: report.pop(name)


def emptied(*names: str) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        for site in report["sites"]:
            for name in names:
                site[name] = type(site[name])()

    return change


def unset(group: str, *names: str) -> Callable[[Report], None]:
    return lambda report: report[group].update({name: None for name in names})


MISSING = [
    (dropped("pruning"), 6, ["Entropy maps were not taken, so layers", "Token pruning was not tried"]),
    (dropped("decisions"), 8, ["The report holds no graph of decisions"]),
    (dropped("sites"), 6, ["No scale was observed", "No candidate was measured", "was not measured"]),
    (emptied("relative_error", "recall", "kept"), 8, ["No candidate was measured", "this makes was not measured"]),
    (emptied("window_mass"), 9, ["The mass in windows was not measured"]),
    (emptied("sink_mass"), 9, ["The mass on leading scales was not measured"]),
    (emptied("sink_mass", "window_mass"), 8, ["The mass on sinks and in windows was not measured"]),
    (emptied("entropy"), 8, ["No scale was observed"]),
    (unset("pruning", "alpha", "alpha_curve"), 8, ["Token pruning was not tried"]),
    (unset("pruning", "alpha"), 9, ["None was chosen: tokens are not to be pruned"]),
    (unset("pruning", "start"), 9, ["never reached, so no scale is pruned"]),
    (unset("pruning", "entropy_maps"), 8, ["Entropy maps were not taken."]),
    (unset("held_out", "psnr_db_mean"), 8, ["No generation was measured", "not measured"]),
    (lambda report: report.update(front=[], trials=[], others={}, checked=None), 9, ["measured, new images"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "images", "sentences"), MISSING)
def test_what_a_report_lacks_is_left_out_with_a_sentence(
    change: Callable[[Report], None], images: int, sentences: list[str]
) -> None:
    plan = make_plan(6)
    report = make_report(plan)
    whole = whole_text()
    change(report)
    reader = read(plan, report)
    assert len(reader.images) == images
    for sentence in sentences:
        assert sentence in reader.text
        assert sentence not in whole or sentence == "measured, new images"


def test_a_report_of_late_scales_alone() -> None:
    """As calibration wrote it before it looked at every scale."""
    plan = make_plan(6)
    report = make_report(plan, pruning=False)
    report["sites"] = [site for site in report["sites"] if site["scale"] >= 9]
    for name in ("target", "nearest", "decisions"):
        del report[name]
    for site in report["sites"]:
        del site["window_mass"]
    assert len(read(plan, report).images) == 5


def with_reductions(report: Report) -> None:
    """What calibration looks at where it may leave out more than columns."""
    nothing: Report = {"conditional_from": None, "pruned": None, "skip": None}
    pruned = {"source": 11, "keep": [[13, 0.1]]}
    report["left_out"] = {
        "reductions": [
            nothing | {"conditional_from": 13, "mse": 1e-4, "saves_seconds": 2.0},
            nothing | {"pruned": pruned, "mse": 4e-4, "saves_seconds": 3.6},
            nothing | {"skip": 1, "mse": 9e-4, "saves_seconds": 4.0},
            nothing | {"skip": 1, "pruned": {"source": 10, "keep": [[12, 0.5]]}, "mse": 1e-3, "saves_seconds": 4.5},
        ],
        "blocks_seconds": {"12": 1.0, "13": 4.0},
    }
    methods = {name: {"psnr_db": 30.0 + number, "held_share": 0.12} for number, name in enumerate(("local", "hack"))}
    report["budget"]["max_kv"] = 0.125
    report["kv"] = {"method": "hack", "store": "same", "held_share": 0.12, "psnr_db": 31.0, "tried": methods}
    images = [{"features": [0.02 * n, 0.3 + 0.01 * n], "psnr": [33.0 - n, 30.0], "ssim": []} for n in range(4)]
    report["per_image"] = {"scale": 11, "images": images, "skipped": [1, 1, 0, 0], "adopted": True}


def test_reductions_are_shown_where_they_were_looked_at() -> None:
    plan = make_plan(6)
    report = make_report(plan)
    with_reductions(report)
    reader = read(plan, report)
    assert len(reader.images) == 12
    assert "at most 0.125 of the KV cache" in reader.text
    assert "the plan goes on with hack" in reader.text and "The choice was adopted" in reader.text
    none = {"why": "the plan skips scales itself", "adopted": False}
    assert "No choice per image: the plan skips scales itself" in read(plan, report | {"per_image": none}).text


@pytest.mark.usefixtures("no_figures")
def test_the_words_for_what_a_plan_leaves_out() -> None:
    plan = make_plan(6)
    short = plan.replace(skip={"last": 1}, decision_scale=11)
    assert "The last 1 scale is not drawn" in read(short, make_report(plan)).text
    model = {"bias": 0.0, "weights": [0.0, 0.0]}
    adapt = {"fingerprint": "sha256:0", "scale": 12, "skip": [model]}
    choosing = plan.replace(adapt=adapt, decision_scale=11)
    assert "the image decides whether it does without up to 1 scale" in read(choosing, make_report(plan)).text
    dense = make_plan(6, "dense")
    small = dense.replace(kv=local(dense, 500))
    held = f"Between scales the KV cache holds {100 * held_share(small):.3g} % of what it would (local)"
    assert held in read(small, make_report(plan)).text


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"min_psnr": 33.31}, "It misses the PSNR asked for"),
        ({"max_seconds": 0.1, "min_ssim": 0.99}, "It misses the SSIM and seconds asked for"),
        ({"min_psnr": None, "max_error": 0.125}, "a relative error of attention of at most 0.125"),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_what_was_asked_and_missed(limits: Report, says: str) -> None:
    plan = make_plan(6)
    report = make_report(plan)
    report["budget"].update(limits)
    assert says in read(plan, report).text


@pytest.mark.usefixtures("no_figures")
def test_seconds_of_a_target_are_a_roofline() -> None:
    plan = make_plan(6)
    report = make_report(plan)
    assert "roofline" not in read(plan, report).text
    report["target"] = "NVIDIA H100"
    text = read(plan, report).text
    assert "Seconds are a roofline for NVIDIA H100" in text
    assert "seconds, roofline" in text


@pytest.mark.usefixtures("no_figures")
def test_problems_of_the_graph_are_shown() -> None:
    plan = make_plan(6)
    report = make_report(plan)
    report["decisions"]["problems"] = ["decision of layer 1: must serve"]
    text = read(plan, report).text
    assert "This graph has problems: decision of layer 1: must serve" in text
    assert "Checked:" not in text


def test_a_page_without_matplotlib_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Figures are left out" not in whole_text()
    plan = make_plan(6)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reader = read(plan, make_report(plan))
    assert not reader.images and "Quality against time" in reader.text
    assert "Figures are left out, as matplotlib is not installed: pip install 'sparvar[plots]'" in reader.text


@pytest.mark.usefixtures("no_figures")
def test_names_cannot_break_the_page() -> None:
    plan = make_plan(6).replace(name="<b>&'\"</b>")
    report = make_report(plan)
    report["nearest"] = "<script>"
    reader = read(plan, report)
    assert "Calibration of <b>&'\"</b>" in reader.text
    assert "Nearest: <script>" in reader.text


@pytest.mark.parametrize("layers", [1, 6, 40])
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_labels_do_not_overlap(layers: int, section: Any) -> None:
    plan = make_plan(layers)
    made = section(plan, make_report(plan))
    with drawn(made) as figure:
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        width, height = figure.canvas.get_width_height()
        # Ticks that lie outside their axes are made, but not drawn.
        hidden = {
            id(label)
            for axes in figure.axes
            for axis, (low, high) in (
                (axes.xaxis, sorted(axes.get_xlim())),
                (axes.yaxis, sorted(axes.get_ylim())),
            )
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            if not low - 1e-9 <= tick.get_loc() <= high + 1e-9
            for label in (tick.label1, tick.label2)
        }
        texts = [
            (text.get_text(), text.get_window_extent(renderer))
            for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and id(text) not in hidden
        ]
        sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()}
    assert sizes <= {9.0}
    assert len(texts) >= 5
    for number, (one, box) in enumerate(texts):
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, f"{one!r} is cut off"
        for other, beside in texts[:number]:
            across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            # A box has room for descenders and accents around the letters.
            assert across <= 1 or down <= 4, f"{one!r} and {other!r} overlap"


def cells(plan: Plan, section: Any, axes: int) -> list[str]:
    with drawn(section) as figure:
        return [text.get_text() for text in figure.axes[axes].texts]


def test_the_assignment_shows_every_site_and_its_error() -> None:
    plan = make_plan(6)
    report = make_report(plan)
    (make,) = [make for make in SECTIONS if make.__name__ == "assignment"]
    shown = cells(plan, make(plan, report), 0)
    assert [shown.count(text) for text in ("20%", "12%", "w9", "w7")] == [3, 3, 2, 4]
    site = next(site for site in report["sites"] if (site["layer"], site["scale"]) == (1, 13))
    error = 100 * site["relative_error"]["cs4a/11/footprint+s4w0/0.12/0.2"]
    assert f"{error:.0f}" in cells(plan, make(plan, report), 1)
    assert len(cells(plan, make(plan, report), 1)) == 12


def test_the_candidate_of_a_site() -> None:
    plan = make_plan(6)
    report = make_report(plan)
    own = {(site["layer"], site["scale"]): own_candidate(plan, site) for site in report["sites"]}
    assert own[1, 12] == "cs4a/11/footprint+s4w0/0.2/0.2"
    assert own[3, 13] == "cs4a/11/footprint+s4w0/0.12/0.2"
    assert own[1, 11] is None and own[0, 13] is None
    assert [own[4, scale] for scale in (11, 12, 13)] == ["csla/2+s4", "csla/1+s4", "csla/0+s4"]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "change",
    [
        {"cs4a": {12: {"budget": 0.2, "window": 7}, 13: {"budget": 0.12, "window": 7}}},
        {"cs4a": {12: {"budget": 0.2}, 13: {"budget": 0.13}}},
        {"cs4a": {12: {"budget": 0.08}, 13: {"budget": 0.12}}},
        {"index_map": "identity"},
        {"decision_scale": 8},
    ],
)
def test_a_setting_that_was_not_measured_has_no_candidate(change: Report) -> None:
    measured = make_plan(6)
    plan = measured.replace(**change)
    report = make_report(measured)
    sites = [site for site in report["sites"] if site["layer"] == 1 and site["scale"] == 13]
    assert [own_candidate(plan, site) for site in sites] == [None]
    assert "blank sparse sites run settings that were not measured" in read(plan, report).text


def test_the_curves_are_those_of_the_plan() -> None:
    plan = make_plan(6)
    names = [
        f"cs4a/{decision}/{index_map}+s{sinks}w{window}/{budget}/-"
        for decision in (10, 11)
        for index_map in ("relative", "footprint")
        for sinks, window in ((3, 0), (4, 7), (4, 0))
        for budget in (0.1, 0.2)
    ]
    found = nearest_group(plan, 13, [*names, "csla/0", "cs4a/what"])
    assert [candidate_text(one) for one in found] == ["cs4a/11/footprint+s4w0/0.1/-", "cs4a/11/footprint+s4w0/0.2/-"]
    assert nearest_group(plan, 13, ["csla/0"]) == []


@pytest.mark.parametrize(
    ("given", "text"), [([], ""), ([3], "3"), ([0, 1], "0, 1"), ([0, 1, 2, 5, 7, 8], "0 to 2, 5, 7, 8")]
)
def test_numbers(given: list[int], text: str) -> None:
    assert numbers(given) == text


@pytest.mark.parametrize(
    ("given", "text"), [(123.4, "123"), (12.345, "12.35"), (0.01234, "0.0123"), (None, "not measured")]
)
def test_seconds(given: float | None, text: str) -> None:
    assert seconds(given) == text
