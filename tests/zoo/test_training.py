"""Training on drawn pictures: it learns, stops, resumes on the same path, and loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparvar.zoo.model import CLASSES, LandscapeVAR
from sparvar.zoo.tokenizer import BitTokenizer
from sparvar.zoo.training.data import load_photos, random_crops, split_photos
from sparvar.zoo.training.loop import LoopConfig, run_loop
from sparvar.zoo.training.tokenizer import fit_tokenizer
from sparvar.zoo.training.transformer import Stage, train_transformer


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures a class: a sky of one colour over a ground of another, with stripes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(2):
            colours = torch.randint(256, (2, 3), generator=generator)
            pixels = colours[0].expand(32, 64, 3).clone()
            pixels[16 + number * 4 :] = colours[1]
            pixels[::4] //= 2
            Image.fromarray(pixels.byte().numpy()).save(folder / name / f"{number}.jpg")
    return folder


def test_data_is_split_for_good_and_crops_repeat(photos: Path) -> None:
    data = load_photos(photos, 32)
    train, held = split_photos(data)
    assert len(train) == len(held) == 10 and not set(train.names) & set(held.names)
    first = random_crops(train, 3, 32, torch.Generator().manual_seed(1))
    again = random_crops(train, 3, 32, torch.Generator().manual_seed(1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"one folder of \.jpg photographs per class"):
        load_photos(tmp_path, 32)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(8, 1, generator=generator)
        return (x @ self.weight - 3 * x).square().mean()


def line_run(folder: Path, **changes: object) -> float:
    model = Line()
    config = LoopConfig("line", folder, steps=40, rate=0.1, warmup=2, ema=0.5, evaluate_every=20)
    run_loop(replace(config, **changes), model, model.loss, lambda average: {"held": 0.0})  # type: ignore[arg-type]
    return model.weight.item()


def test_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    whole = line_run(tmp_path / "whole")
    line_run(tmp_path / "parts", stop_at=17)
    assert line_run(tmp_path / "parts") == whole


def test_ctrl_c_keeps_the_steps_done(tmp_path: Path) -> None:
    class Interrupted(Line):
        def loss(self, step: int, generator: torch.Generator) -> Tensor:
            if step == 9:
                raise KeyboardInterrupt
            return super().loss(step, generator)

    config = LoopConfig("line", tmp_path, steps=40, rate=0.1, warmup=2, ema=0.5, evaluate_every=20)
    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, model, model.loss, lambda average: {})
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 9
    assert line_run(tmp_path) == line_run(tmp_path / "whole")


def test_checkpoint_of_another_length_is_refused(tmp_path: Path) -> None:
    line_run(tmp_path, stop_at=5)
    with pytest.raises(ValueError, match="made for 40 steps, this run asks for 50"):
        line_run(tmp_path, steps=50)


def test_disk_that_fills_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line_run(tmp_path, stop_at=5)
    before = (tmp_path / "line.pt").read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        line_run(tmp_path)
    assert (tmp_path / "line.pt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")] == []


def test_diverging_run_stops(tmp_path: Path) -> None:
    model = Line()
    config = LoopConfig("line", tmp_path, steps=4, rate=0.1)
    with pytest.raises(FloatingPointError, match="gradient is nan at step 0"):
        run_loop(config, model, lambda step, generator: model.weight.sum() * float("nan"), lambda average: {})


@pytest.mark.slow
def test_transformer_learns(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = BitTokenizer(dim=8, patch=4, sides=(1, 2, 4, 8), width=8, depth=1)
    train, held = split_photos(load_photos(photos, tokenizer.image_side))
    fit_tokenizer(tokenizer, train, samples=32)
    model = LandscapeVAR(tokenizer, width=64, depth=1, heads=1)
    loop = LoopConfig("all", tmp_path, steps=60, rate=3e-3, warmup=5, ema=0.8, evaluate_every=30)
    figures = train_transformer(model, train, held, tmp_path, (Stage(4, 8, loop),))
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    # Chance is log 2 = 0.693 nats a bit; the logged loss is a running mean that starts about there. The held-out
    # pictures have other random colours, which cannot be learned.
    assert lines[-1]["loss"] < lines[0]["loss"] < 0.693
    assert set(figures) == {"held", "held_1", "held_2", "held_4", "held_8"}
