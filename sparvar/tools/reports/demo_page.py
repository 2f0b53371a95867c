"""``report.html``: one file with everything in it, readable without a network or the other files."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

from PIL import Image

from sparvar.evaluate.machine import machine
from sparvar.scale_plans import Plan
from sparvar.tools.bench.demo import DemoResult
from sparvar.tools.reports.demo_table import change, count, decibels, faster, psnr_median, rows
from sparvar.tools.reports.page_style import STYLE
from sparvar.tools.reports.picture import GAIN, SCALE_COLOURS, colour_of, overlay, to_array

VARIANTS = {"eager": ("dense", "#94a3b8"), "inductor": ("dense, Inductor", "#64748b"), "sparse": ("sparse", "#0f766e")}


def _escape(text: object) -> str:
    return html.escape(str(text))


def _embed(image: Image.Image, text: str) -> str:
    # JPEG at high quality: four times smaller than PNG; the figures come from the tensors, not from these.
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_escape(text)}" src="data:image/jpeg;base64,{data}">'


def _figure(image: Image.Image, caption: str) -> str:
    return f"<figure>{_embed(image, caption)}<figcaption>{_escape(caption)}</figcaption></figure>"


def page(result: DemoResult) -> str:
    """The whole page."""
    plan, reference = result.plan, result.reference
    speed = result.speedup(reference)
    attention = result.attention
    assert attention is not None
    cards = [
        (faster(speed.median), "per image", f"{result.median(reference):.2f} s to {result.median('sparse'):.2f} s"),
        (faster(attention.speedup), "attention", "at the sparse scales"),
        (decibels(psnr_median(result)), "PSNR", "against the dense image, same seed"),
        (change(result.peak[reference], result.peak["sparse"]), "peak memory", "of one image"),
    ]
    body = "".join(
        (
            f"<header><h1>Dense and sparse, the same images</h1><p>{_lead(result)}</p></header>",
            '<section class="cards">',
            *(f"<div><strong>{a}</strong><span>{b}</span><small>{c}</small></div>" for a, b, c in cards),
            "</section>",
            _images(result),
            "<section><h2>Time per scale</h2>"
            "<p>Medians of the timed runs. Scales are numbered as the plan does, with their grid below.</p>",
            time_chart(result),
            "</section>",
            "<section><h2>What runs where</h2><p>One row per layer, one column per scale.</p>",
            policy_map(plan),
            "</section>",
            _columns(result),
            _table(result),
        )
    )
    title = "sparvar demo"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _lead(result: DemoResult) -> str:
    plan = result.plan
    facts = machine()
    return _escape(
        f"{count(len(result.images), 'image')} of 512 by 512 pixels, guidance {result.settings.cfg:g}, plan {plan.name}"
        f" ({plan.digest[:19]}), {count(result.settings.runs, 'timed run')} of each image, dense and sparse in turns,"
        f" on {facts['cpu']}"
        f" with {facts['threads']} threads, torch {facts['torch']}."
    )


def _images(result: DemoResult) -> str:
    parts = ["<section><h2>Images</h2>"]
    for image in result.images:
        name = f"{image.label.replace('_', ' ')}, seed {image.seed}"
        difference = ((image.sparse - image.dense).abs() * GAIN).clamp(0, 1)
        parts.append('<div class="row">')
        parts.append(_figure(Image.fromarray(to_array(image.dense)), f"{name}: dense"))
        quality = f"sparse, PSNR {decibels(image.psnr_db)}, SSIM {image.ssim:.3f}"
        parts.append(_figure(Image.fromarray(to_array(image.sparse)), quality))
        parts.append(_figure(Image.fromarray(to_array(difference)), f"difference x{GAIN}"))
        parts.append("</div>")
    return "".join([*parts, "</section>"])


def time_chart(result: DemoResult) -> str:
    """Grouped bars, seconds per scale and decoding, as SVG."""
    plan = result.plan
    variants = [*result.settings.baselines, "sparse"]
    series = {
        name: [*result.scale_medians(name), sorted(result.decode[name])[len(result.decode[name]) // 2]]
        for name in variants
    }
    labels = [(str(scale), "x".join(map(str, plan.grid(scale)))) for scale in range(1, plan.scales + 1)]
    labels.append(("decode", ""))
    most = max(max(values) for values in series.values())
    step = _nice(most / 4)
    top = step * math.ceil(most / step)
    width, height, left, base = 960, 300, 52, 250
    slot = (width - left) / len(labels)
    bar = 0.76 * slot / len(variants)
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="seconds per scale">']
    for tick in range(round(top / step) + 1):
        y = base - (base - 30) * tick * step / top
        out.append(f'<line class="grid" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g} s</text>')
    for number, (label, grid) in enumerate(labels):
        x = left + number * slot + 0.12 * slot
        for place, name in enumerate(variants):
            tall = (base - 30) * series[name][number] / top
            title, colour = VARIANTS[name]
            out.append(
                f'<rect x="{x + place * bar:.1f}" y="{base - tall:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}"'
                f' fill="{colour}" rx="1.5"><title>{title}, {label}: {series[name][number]:.3f} s</title></rect>'
            )
        middle = left + (number + 0.5) * slot
        out.append(f'<text class="strong" x="{middle:.1f}" y="{base + 18}" text-anchor="middle">{label}</text>')
        out.append(f'<text x="{middle:.1f}" y="{base + 35}" text-anchor="middle">{grid}</text>')
    x = left + 12
    for name in variants:
        title, colour = VARIANTS[name]
        out.append(f'<rect x="{x}" y="6" width="12" height="12" fill="{colour}" rx="2"/>')
        out.append(f'<text class="strong" x="{x + 18}" y="16">{title}</text>')
        x += 40 + 8 * len(title)
    return "".join([*out, "</svg>"])


def _nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def policy_map(plan: Plan) -> str:
    """Layers by scales: dense, decide or sparse, with the share of pairs that is computed."""
    head = "".join(
        f"<th>{scale}<small>{'x'.join(map(str, plan.grid(scale)))}</small></th>" for scale in range(1, plan.scales + 1)
    )
    lines = []
    for layer, policy in enumerate(plan.layers):
        cells = []
        for scale in range(1, plan.scales + 1):
            kind = plan.attention_kind(scale, layer)
            share = plan.kept_share(scale, policy) if kind == "sparse" else None
            text = f"{100 * share:.0f} %" if share is not None else ("decide" if kind == "decide" else "")
            look = policy if kind == "sparse" else kind
            hint = f"scale {scale}, layer {layer}: {kind}"
            cells.append(f'<td class="{look}" title="{_escape(hint)}">{text}</td>')
        lines.append(f"<tr><th>layer {layer}<small>{_escape(policy)}</small></th>{''.join(cells)}</tr>")
    key = "".join(
        f'<span><i class="{look}"></i>{text}</span>'
        for look, text in (
            ("dense", "dense"),
            ("decide", "dense, and columns are chosen"),
            ("cs4a", "cs4a: the chosen columns, mapped to this scale"),
            ("csla", "csla: sinks and windows"),
        )
    )
    return (
        f'<div class="scroll"><table class="map"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
        f'<p class="key">{key}</p><p class="fine">Percentages: pairs of query and key that are computed, estimated for'
        " cs4a, exact for csla.</p>"
    )


def _columns(result: DemoResult) -> str:
    plan = result.plan
    if not result.columns:
        return ""
    parts = [
        "<section><h2>The keys a tile reads</h2><p>A white frame marks a tile of queries. Each dot is a key that the"
        " tile attends to, drawn where it lies in the image; colours tell its scale. What is not marked is not"
        f" read.</p>{_scale_key(plan)}"
    ]
    for policy in dict.fromkeys(kept.policy for kept in result.columns):
        parts.append('<div class="row">')
        for kept in (kept for kept in result.columns if kept.policy == policy):
            total = plan.keys(kept.scale)
            caption = f"{policy}, layer {kept.layer}"
            if policy == "cs4a":
                caption += f", head {kept.head}"
            caption += (
                f", {plan.label(kept.scale)}: {len(kept.keys)} of {total} keys ({100 * len(kept.keys) / total:.0f} %)"
            )
            parts.append(_figure(overlay(result.images[0].dense, plan, kept), caption))
        parts.append("</div>")
    return "".join([*parts, "</section>"])


def _scale_key(plan: Plan) -> str:
    first = max(1, plan.scales - len(SCALE_COLOURS) + 1)
    names: list[tuple[int, str]] = [(first, f"scales 1 to {first}" if first > 1 else "scale 1")]
    names += [(scale, plan.label(scale)) for scale in range(first + 1, plan.scales + 1)]
    spans = "".join(f'<span><i style="background:{colour_of(plan, scale)}"></i>{text}</span>' for scale, text in names)
    return f'<p class="key">{spans}</p>'


def _table(result: DemoResult) -> str:
    lines = _table_lines([("", "dense", "sparse", ""), *rows(result)])
    facts = [(name, value) for name, value in machine().items() if value]
    about = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(_plain(value))}</dd>" for name, value in facts)
    return (
        f'<section><h2>Figures</h2><div class="scroll"><table class="figures">{lines}</table></div>'
        f'<p class="fine">Speed-ups are medians of pairs of runs. Memory: {_escape(result.peak_method)}. All figures'
        f" are in report.json.</p><h3>Machine</h3><dl>{about}</dl></section>"
    )


def _table_lines(lines: Sequence[Sequence[str]]) -> str:
    out = []
    for number, line in enumerate(lines):
        cell = "th" if number == 0 else "td"
        out.append("<tr>" + "".join(f"<{cell}>{_escape(text)}</{cell}>" for text in line) + "</tr>")
    return "".join(out)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
