"""``python -m sparvar.zoo.training.card``: contact sheet of the classes and how much was memorised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from PIL import Image, ImageDraw
from rich.progress import track
from torch import Tensor

from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.training.data import Photos, load_photos, split_photos
from sparvar.zoo.training.loop import write_atomically
from sparvar.zoo.weights import landscape

SMALL = 32


def contact_sheet(rows: dict[str, Tensor], side: int = 224) -> Image.Image:
    """One row per class of its images [n, 3, S, S], with the class's name at the left."""
    margin, gap = 150, 6
    count = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (margin + count * (side + gap), len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        top = row * (side + gap)
        draw.text((8, top + side // 2 - 8), name.replace("_", " / "), fill="black", font_size=17)
        small = F.interpolate(images, size=(side, side), mode="area")
        for column, pixels in enumerate((small * 255).round().byte().permute(0, 2, 3, 1)):
            sheet.paste(Image.fromarray(pixels.numpy()), (margin + column * (side + gap), top))
    return sheet


def thumbnails(photos: Photos) -> Tensor:
    """Crops of every photograph at several places, sizes and mirrored, as centred vectors [n, 3*32*32]."""
    found = []
    for pixels in photos.pixels:
        image = pixels[None].float() / 255
        height, width = image.shape[-2:]
        for share in (1.0, 0.85, 0.7):
            size = round(height * share)
            for top in sorted({0, (height - size) // 2, height - size}):
                for step in range(9):
                    left = round((width - size) * step / 8)
                    crop = F.interpolate(image[..., top : top + size, left : left + size], (SMALL, SMALL), mode="area")
                    found += [crop, crop.flip(-1)]
    return centred(torch.cat(found))


def centred(images: Tensor) -> Tensor:
    """Images [n, 3, 32, 32] as vectors of unit length without their mean colour: their dot product is a correlation."""
    flat = images - images.mean(dim=(-2, -1), keepdim=True)
    return F.normalize(flat.flatten(1), dim=1)


def nearest(images: Tensor, references: Tensor) -> Tensor:
    """Highest correlation of each of images [n, 3, S, S] with any reference vector, [n]."""
    return (centred(F.interpolate(images, (SMALL, SMALL), mode="area")) @ references.T).amax(1)


def sample(model: LandscapeVAR, per_class: int, seed: int, cfg: float) -> dict[str, Tensor]:
    """``per_class`` images of every class."""
    return {
        name: model.generate([name] * per_class, seed=seed + 100 * number, cfg=cfg)
        for number, name in enumerate(track(model.classes, "samples"))
    }


def main(
    data: Annotated[Path, typer.Option(help="The photographs that the model was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder for contact-sheet.jpg and memorisation.json.")],
    weights: Annotated[Path | None, typer.Option(help="Folder of the weights; the shipped ones by default.")] = None,
    per_class: Annotated[int, typer.Option(help="Images per class.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
    cfg: Annotated[float, typer.Option(help="Guidance.")] = 2.0,
) -> None:
    """Draw every class and compare the draws with the photographs, at 32x32 pixels."""
    model = landscape(weights)
    rows = sample(model, per_class, seed, cfg)
    train, held = split_photos(load_photos(data, model.tokenizer.image_side))
    references = thumbnails(train)
    drawn = torch.cat([nearest(images, references) for images in rows.values()])
    middle = [
        pixels[:, :, (pixels.shape[2] - pixels.shape[1]) // 2 :][:, :, : pixels.shape[1]] for pixels in held.pixels
    ]
    real = nearest(torch.stack([crop.float() / 255 for crop in middle]), references)
    figures = {
        "samples": len(drawn),
        "sample_to_training_correlation_median": drawn.median().item(),
        "sample_to_training_correlation_p90": drawn.quantile(0.9).item(),
        "held_out_to_training_correlation_median": real.median().item(),
        "held_out_to_training_correlation_p90": real.quantile(0.9).item(),
        "samples_above_0.95": (drawn > 0.95).float().mean().item(),
        "held_out_above_0.95": (real > 0.95).float().mean().item(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "contact-sheet.jpg", lambda path: contact_sheet(rows).save(path, format="JPEG", quality=88))
    text = json.dumps(figures, indent=2)
    write_atomically(out / "memorisation.json", lambda path: path.write_text(text + "\n"))
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
