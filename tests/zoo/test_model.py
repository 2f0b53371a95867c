"""The shipped model: what generate promises, and weights that do not fit."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch

import sparvar.zoo
from sparvar.zoo import LandscapeWeightsError, landscape
from sparvar.zoo.weights import FOLDER, save_landscape
from tests.tiny import SIDES, generate, tiny_model


def test_images_are_floats_between_0_and_1_and_repeat_with_the_seed() -> None:
    model = tiny_model()
    images = generate(model)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, generate(model))
    assert not torch.equal(images, generate(model, seed=4))


@pytest.mark.parametrize("label", ["marsh", 10, -1, 1.5, None])
def test_unknown_label_lists_the_classes(label: object) -> None:
    with pytest.raises(ValueError, match=r"0 canyon.*9 valley.*got"):
        tiny_model().generate([label])  # type: ignore[list-item]


def test_no_labels() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        tiny_model().generate([])


def test_generation_equals_teacher_forcing() -> None:
    """Logits with the KV cache are those of the training pass over all scales at once."""
    model = tiny_model()
    inputs = [torch.randn(2, 8, side, side) for side in SIDES]
    labels = torch.tensor([1, 2])
    whole = model(labels, inputs)
    start, cond, head = model.condition(labels)
    for block in model.blocks:
        block.attn.kv_caching(True)  # type: ignore[operator,union-attr]
    with torch.inference_mode():
        for scale, level in enumerate(inputs):
            x = model.tokens(level, start, scale)
            for block in model.blocks:
                x = block(x, cond, model.rope(scale))
            part = model.logits(x, head).transpose(1, 2).unflatten(2, level.shape[-2:])
            torch.testing.assert_close(part, whole[scale], rtol=1e-4, atol=1e-4)


def test_bits_round_trip_through_the_accumulated_map() -> None:
    tokenizer = tiny_model().tokenizer
    latent = torch.randn(2, 8, 8, 8)
    bits, inputs, total = tokenizer.quantise(latent, len(SIDES))
    again = torch.zeros_like(latent)
    for scale, level in enumerate(bits):
        torch.testing.assert_close(tokenizer.grow(again, SIDES[scale]), inputs[scale])
        again = tokenizer.accumulate(again, level, scale)
    torch.testing.assert_close(again, total)


def test_zoo_knows_nothing_of_sparvar() -> None:
    for file in Path(sparvar.zoo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert all(not name.startswith("sparvar") or name.startswith("sparvar.zoo") for name in names), file


def test_shipped_weights_fit_the_budget_and_generate() -> None:
    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    assert size <= 16e6
    model = landscape()
    assert model.sides[-1] * 8 == 512 and len(model.classes) == 10


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "weights"))


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(LandscapeWeightsError, match=r"landscape\.json must exist, found no file; reinstall"):
        landscape(tmp_path)


def test_checksum_that_does_not_match(copy: Path) -> None:
    weights = copy / "landscape.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(LandscapeWeightsError, match=r"must have sha256 .*the file is damaged"):
        landscape(copy)


def test_truncated_weights(copy: Path) -> None:
    weights = copy / "landscape.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LandscapeWeightsError, match="must have sha256"):
        landscape(copy)


def test_broken_manifest(copy: Path) -> None:
    manifest = copy / "landscape.json"
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(LandscapeWeightsError, match="must be the manifest"):
        landscape(copy)


def test_manifest_of_another_width(copy: Path) -> None:
    manifest = copy / "landscape.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "width": 128}))
    with pytest.raises(LandscapeWeightsError, match="must fit the model"):
        landscape(copy)


def test_saving_fails_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparvar.zoo.weights.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_landscape(landscape(copy), copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
