"""``report.html``: one file with everything in it, readable without a network or the other files."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

from PIL import Image

from sparvar.evaluate.machine import machine
from sparvar.evaluate.timing import decode_median, scale_medians
from sparvar.scale_plans import Plan
from sparvar.tools.bench.demo import DemoImage, DemoResult
from sparvar.tools.reports.demo_table import psnr_median, rows
from sparvar.tools.reports.picture import GAIN, SCALE_COLOURS, colour_of, overlay, to_array
from sparvar.tools.reports.render import render
from sparvar.tools.reports.text import change, decibels, faster, grid_text

VARIANTS = {"eager": ("dense", "#94a3b8"), "inductor": ("dense, Inductor", "#64748b"), "sparse": ("sparse", "#0f766e")}
WIDTH, LEFT, TOP, BASE = 960, 52, 30, 250
"""The time chart: its width, where its axis begins, and the heights between which bars stand."""

Figure = tuple[str, str]
"""(address, caption) of a picture."""


def page(result: DemoResult) -> str:
    """The whole page."""
    plan, reference, attention = result.plan, result.reference, result.attention
    assert attention is not None
    speed = result.speedup(reference)
    return render(
        "demo.html",
        title="sparvar demo",
        plan=plan,
        settings=result.settings,
        machine=machine(),
        cards=[
            (faster(speed.median), "per image", f"{result.median(reference):.2f} s to {result.median('sparse'):.2f} s"),
            (faster(attention.speedup), "attention", "at the sparse scales"),
            (decibels(psnr_median(result)), "PSNR", "against the dense image, same seed"),
            (change(result.peak[reference], result.peak["sparse"]), "peak memory", "of one image"),
        ],
        images=[_comparison(image) for image in result.images],
        chart=_time_chart(result),
        grids=[grid_text(grid) for grid in plan.schedule],
        layers=[(policy, _cells(plan, layer)) for layer, policy in enumerate(plan.layers)],
        columns=_columns(result),
        scale_colours=_scale_colours(plan),
        rows=rows(result),
        peak_method=result.peak_method,
    )


def _figure(image: Image.Image, caption: str) -> Figure:
    # JPEG at high quality: four times smaller than PNG; the figures come from the tensors, not from these.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", caption


def _comparison(image: DemoImage) -> list[Figure]:
    """An image dense, sparse, and their difference."""
    difference = ((image.sparse - image.dense).abs() * GAIN).clamp(0, 1)
    name = f"{image.label.replace('_', ' ')}, seed {image.seed}"
    captions = {
        f"{name}: dense": image.dense,
        f"sparse, PSNR {decibels(image.psnr_db)}, SSIM {image.ssim:.3f}": image.sparse,
        f"difference x{GAIN}": difference,
    }
    return [_figure(Image.fromarray(to_array(tensor)), caption) for caption, tensor in captions.items()]


def _time_chart(result: DemoResult) -> dict[str, Any]:
    """Grouped bars, seconds per scale and of decoding: what stands where in the drawing."""
    plan = result.plan
    series = {name: [*scale_medians(many), decode_median(many)] for name, many in result.timed.items()}
    labels = [(str(scale), grid_text(plan.grid(scale))) for scale in range(1, plan.scales + 1)] + [("decode", "")]
    most = max(max(values) for values in series.values())
    step = _nice(most / 4)
    top = step * math.ceil(most / step)
    slot = (WIDTH - LEFT) / len(labels)
    wide = 0.76 * slot / len(series)
    bars, legend, end = [], [], LEFT + 12
    for place, name in enumerate(series):
        title, colour = VARIANTS[name]
        legend.append((end, colour, title))
        end += 40 + 8 * len(title)
        for number, (value, (label, _)) in enumerate(zip(series[name], labels, strict=True)):
            height = (BASE - TOP) * value / top
            bars.append(
                {
                    "x": round(LEFT + (number + 0.12) * slot + place * wide, 1),
                    "y": round(BASE - height, 1),
                    "width": round(wide - 1, 1),
                    "height": round(height, 1),
                    "colour": colour,
                    "title": f"{title}, {label}: {value:.3f} s",
                }
            )
    return {
        "ticks": [
            (round(BASE - (BASE - TOP) * tick * step / top, 1), f"{tick * step:g} s")
            for tick in range(round(top / step) + 1)
        ],
        "bars": bars,
        "labels": [(round(LEFT + (at + 0.5) * slot, 1), *label) for at, label in enumerate(labels)],
        "legend": legend,
    }


def _nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _cells(plan: Plan, layer: int) -> list[tuple[str, str, str]]:
    """(look, hint, text) of a layer at every scale: dense, decide or its policy, with the share that is computed."""
    cells = []
    for scale in range(1, plan.scales + 1):
        kind, policy = plan.attention_kind(scale, layer), plan.layers[layer]
        share = plan.kept_share(scale, policy) if kind == "sparse" else None
        text = f"{100 * share:.0f} %" if share is not None else kind if kind == "decide" else ""
        cells.append((policy if kind == "sparse" else kind, f"scale {scale}, layer {layer}: {kind}", text))
    return cells


def _columns(result: DemoResult) -> list[list[Figure]]:
    """Pictures of the keys that tiles read, a row for each policy."""
    plan = result.plan
    found: dict[str, list[Figure]] = {}
    for kept in result.columns:
        total, count = plan.keys(kept.scale), len(kept.keys)
        head = f", head {kept.head}" if kept.policy == "cs4a" else ""
        caption = f"{kept.policy}, layer {kept.layer}{head}, {plan.label(kept.scale)}: {count} of {total} keys"
        picture = overlay(result.images[0].dense, plan, kept)
        found.setdefault(kept.policy, []).append(_figure(picture, f"{caption} ({100 * count / total:.0f} %)"))
    return list(found.values())


def _scale_colours(plan: Plan) -> list[tuple[str, str]]:
    """The colours of keys, and the scales they stand for."""
    first = max(1, plan.scales - len(SCALE_COLOURS) + 1)
    names = {first: f"scales 1 to {first}" if first > 1 else "scale 1"}
    names |= {scale: plan.label(scale) for scale in range(first + 1, plan.scales + 1)}
    return [(colour_of(plan, scale), text) for scale, text in names.items()]
