"""Photographs for training: one folder per class, cropped, mirrored and scaled at random."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

#: Photographs of the image set that show no landscape: halls, machines, cabins, clouds of a planet. With them, two
#: thirds of its class, ``industrial_space`` was drawn as rust and light without a horizon.
NO_LANDSCAPE = frozenset(
    f"industrial_space/{name}.jpg"
    for name in (
        *("loc0", "loc1", "loc2", "nasa8", "nasa9"),
        *("space0", "space1", "space3", "space4", "space5", "space6", "space7"),
        *("station0", "station1", "station2", "station3", "station4"),
    )
)


@dataclass(frozen=True)
class Photos:
    """Photographs in memory.

    Attributes:
        pixels: uint8 [3, h, w] each, landscape format, h equal to the training side.
        labels: class index of each.
        names: ``class/file`` of each.
        classes: class names, sorted.
    """

    pixels: list[Tensor]
    labels: list[int]
    names: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, keep: list[int]) -> Photos:
        return Photos(
            [self.pixels[i] for i in keep],
            [self.labels[i] for i in keep],
            [self.names[i] for i in keep],
            self.classes,
        )


def load_photos(folder: Path, side: int) -> Photos:
    """Read ``folder/<class>/*.jpg``, scaled so that the shorter side is ``side`` pixels.

    Those of :data:`NO_LANDSCAPE` are left out.

    Raises:
        FileNotFoundError: no photograph below ``folder``.
    """
    files = sorted(file for file in folder.glob("*/*.jpg") if f"{file.parent.name}/{file.name}" not in NO_LANDSCAPE)
    if not files:
        raise FileNotFoundError(
            f"training data: {folder} must hold one folder of .jpg photographs per class, found none;"
            " name the folder with --data"
        )
    classes = sorted({file.parent.name for file in files})
    pixels, labels, names = [], [], []
    for file in files:
        with Image.open(file) as image:
            picture = image.convert("RGB")
            factor = side / min(picture.size)
            size = (max(side, round(picture.width * factor)), max(side, round(picture.height * factor)))
            if size != picture.size:
                picture = picture.resize(size, Image.Resampling.LANCZOS)
            raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels.append(raw.view(size[1], size[0], 3).permute(2, 0, 1).contiguous())
        labels.append(classes.index(file.parent.name))
        names.append(f"{file.parent.name}/{file.name}")
    return Photos(pixels, labels, names, classes)


def split_photos(photos: Photos, one_in: int = 16) -> tuple[Photos, Photos]:
    """Training and held-out photographs: of every class the ``1/one_in`` whose names hash lowest."""
    by_class: dict[int, list[int]] = {}
    for i, label in enumerate(photos.labels):
        by_class.setdefault(label, []).append(i)
    held: list[int] = []
    for members in by_class.values():
        ranked = sorted(members, key=lambda i: hashlib.sha256(photos.names[i].encode()).hexdigest())
        held += ranked[: -(-len(members) // one_in)]
    return photos.subset([i for i in range(len(photos)) if i not in held]), photos.subset(sorted(held))


def centre_crops(photos: Photos, side: int) -> tuple[Tensor, Tensor]:
    """The middle square of every photograph: images [n, 3, side, side] in [0, 1], labels [n]."""
    crops = []
    for pixels in photos.pixels:
        top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
        crops.append(pixels[:, top : top + side, left : left + side].float() / 255)
    return torch.stack(crops), torch.tensor(photos.labels)


def random_crops(
    photos: Photos, batch: int, side: int, generator: torch.Generator, zoom: float = 0.7
) -> tuple[Tensor, Tensor]:
    """``batch`` random square crops: images [batch, 3, side, side] in [0, 1], labels [batch].

    Classes are drawn evenly, since they hold between 7 and 24 photographs.  A crop's side is drawn
    between ``zoom`` and 1 of the photograph's height; every other crop on average is mirrored.
    """
    by_class: dict[int, list[int]] = {}
    for i, label in enumerate(photos.labels):
        by_class.setdefault(label, []).append(i)
    order = sorted(by_class)
    images, labels = [], []
    for _ in range(batch):
        draw = torch.rand(6, generator=generator).tolist()
        # Half by class, half by photograph: rare classes are seen more, but not tenfold.
        pool = by_class[order[int(draw[1] * len(order))]] if draw[0] < 0.5 else list(range(len(photos)))
        index = pool[int(draw[2] * len(pool))]
        pixels = photos.pixels[index]
        size = round(pixels.shape[1] * (zoom + (1 - zoom) * draw[3] ** 0.5))
        top = int(torch.rand((), generator=generator).item() * (pixels.shape[1] - size + 1))
        left = int(draw[4] * (pixels.shape[2] - size + 1))
        crop = pixels[:, top : top + size, left : left + size].float()[None] / 255
        if size != side:
            crop = F.interpolate(crop, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
        images.append(crop[0].flip(-1) if draw[5] < 0.5 else crop[0])
        labels.append(photos.labels[index])
    return torch.stack(images), torch.tensor(labels)
