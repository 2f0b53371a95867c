"""Pictures of the demo: the comparison sheet and the overlays of kept keys."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparvar.scale_plans import Plan
from sparvar.tools.bench.demo import DemoImage
from sparvar.tools.reports.kept_columns import KeptColumns
from sparvar.tools.reports.text import decibels

GAIN = 8
"""How much differences are enlarged in the comparison."""

_INK, _SOFT, _PAPER = (28, 30, 34), (110, 114, 122), (255, 255, 255)
_GAP, _HEAD, _FOOT = 16, 54, 44

SCALE_COLOURS = ("#2b6cb0", "#0f9d8a", "#7cb342", "#f9a825", "#ef6c00")
"""Colours of the kept keys: sinks and every scale before the last four, then the last four."""


def to_array(image: Tensor) -> NDArray[np.uint8]:
    """Image [3, S, S] in [0, 1] to bytes [S, S, 3]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_of(image: Any) -> bytes:
    """An image [3, H, W] in [0, 1], of torch on any device or NumPy, as a PNG file."""
    image = image.cpu() if hasattr(image, "cpu") else image
    pixels = (np.clip(np.asarray(image), 0, 1) * 255).round().astype(np.uint8)
    return png(Image.fromarray(pixels.transpose(1, 2, 0)))


def comparison(images: list[DemoImage]) -> Image.Image:
    """Rows of images; columns dense, sparse, and their difference enlarged ``GAIN`` times around black."""
    side = images[0].dense.shape[-1]
    width = 3 * side + 4 * _GAP
    height = _HEAD + len(images) * (side + _FOOT) + _GAP // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    head, foot = (ImageFont.load_default(size) for size in (24, 18))
    for column, title in enumerate(("Dense", "Sparse", f"Difference x{GAIN}")):
        draw.text((_GAP + column * (side + _GAP), _HEAD // 2), title, fill=_INK, font=head, anchor="lm")
    for row, image in enumerate(images):
        top = _HEAD + row * (side + _FOOT)
        difference = (image.sparse - image.dense).abs() * GAIN
        captions = (
            f"{image.label.replace('_', ' ')}, seed {image.seed}",
            f"PSNR {decibels(image.psnr_db)}, SSIM {image.ssim:.3f}",
            f"mean absolute difference {255 * float((image.sparse - image.dense).abs().mean()):.2f} of 255",
        )
        for column, (tensor, caption) in enumerate(zip((image.dense, image.sparse, difference), captions, strict=True)):
            left = _GAP + column * (side + _GAP)
            sheet.paste(Image.fromarray(to_array(tensor)), (left, top))
            draw.text((left, top + side + 18), caption, fill=_SOFT if column else _INK, font=foot, anchor="lm")
    return sheet


def colour_of(plan: Plan, scale: int) -> str:
    """Colour of keys of a 1-based scale in the overlays."""
    return SCALE_COLOURS[max(0, scale - (plan.scales - len(SCALE_COLOURS)) - 1)]


def overlay(image: Tensor, plan: Plan, kept: KeptColumns) -> Image.Image:
    """The image, darkened, with the keys that a tile reads at their places and the tile framed in white.

    A key of scale l in cell (y, x) stands at the centre of the part of the image that the cell covers; coarser
    scales are drawn first and larger.
    """
    grey = np.asarray(Image.fromarray(to_array(image)).convert("L").convert("RGB"), dtype=np.float32)
    picture = Image.fromarray((grey * 0.45 + 20).astype(np.uint8)).convert("RGBA")
    side = picture.width
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for scale in range(1, kept.scale + 1):
        start = plan.offset(scale)
        height, width = plan.grid(scale)
        keys = kept.keys[(kept.keys >= start) & (kept.keys < start + height * width)] - start
        reach = max(1.5, 0.28 * side / width) if scale > plan.sink_scales else 2.0
        reach = min(reach, 5.0)
        colour = tuple(int(colour_of(plan, scale)[i : i + 2], 16) for i in (1, 3, 5))
        for key in keys.tolist():
            y, x = (key // width + 0.5) * side / height, (key % width + 0.5) * side / width
            draw.rectangle((x - reach, y - reach, x + reach, y + reach), fill=(*colour, 225))
    top, left, bottom, right = kept.tile
    height, width = plan.grid(kept.scale)
    frame = (left * side / width, top * side / height, right * side / width - 1, bottom * side / height - 1)
    draw.rectangle(frame, outline=(255, 255, 255, 255), width=3)
    return Image.alpha_composite(picture, layer).convert("RGB")
