"""Weights from files of every kind, good and bad."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from sparvar.calibrate import load_subject
from sparvar.errors import OptionError
from sparvar.tools.cli import app
from tests.tiny import tiny_model

FACTORY = "tests.calibrate.factories:tiny"
State = dict[str, Tensor]
Save = Callable[[State, Path], object]


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def state() -> State:
    """Weights that the factory's model does not have."""
    return tiny_model(seed=1).state_dict()


def _legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.safetensors", save_file),
        ("a.pt", torch.save),
        ("a.PTH", torch.save),
        ("a.pth", _legacy),
        ("a.pt", lambda state, path: torch.save({"state_dict": state, "step": 3}, path)),
        ("a.pt", lambda state, path: torch.save({"model": state, "optimizer": {"lr": [0.1]}}, path)),
        ("a.pt", lambda state, path: torch.save({"module": state}, path)),
        ("a.pt", lambda state, path: torch.save({"ema": state}, path)),
    ],
)
def test_weights_are_the_file_s(tmp_path: Path, state: State, name: str, save: Save) -> None:
    save(state, tmp_path / name)
    model = load_subject(FACTORY, tmp_path / name).model
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    plain = load_subject(FACTORY).model
    assert not torch.equal(plain.state_dict()["start"], state["start"])


def test_types_become_the_model_s(tmp_path: Path, state: State) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "a.safetensors")
    model = load_subject(FACTORY, tmp_path / "a.safetensors").model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def renamed(state: State) -> State:
    found = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.2.")}
    found["blocks.0.attn.proj.weight"] = torch.zeros(3, 128)
    return {**found, "extra.bias": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (
            renamed,
            [
                "10 missing (blocks.2.ada_bias, blocks.2.attn.scale_log, blocks.2.attn.qkv.weight, ...)",
                "1 unexpected (extra.bias)",
                "1 of another shape (blocks.0.attn.proj.weight [3, 128] for [128, 128])",
                "build the model with the settings of this checkpoint",
            ],
        ),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, ["begin with 'module.'"]),
        (lambda state: {"other": torch.zeros(1)}, ["no name agrees: it belongs to another model"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, state: State, change: Callable[[State], State], texts: list[str]
) -> None:
    save_file(change(state), tmp_path / "a.safetensors")
    with pytest.raises(OptionError) as error:
        load_subject(FACTORY, tmp_path / "a.safetensors")
    for text in texts:
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("name", "make", "text"),
    [
        ("a.bin", lambda path: path.write_bytes(b"x"), "must end in .safetensors, .pt, .pth, got '.bin'"),
        ("a.pt", lambda path: None, "must be a readable file, got No such file"),
        ("a.pt", lambda path: path.mkdir(), "must be a readable file, got Is a directory"),
        ("a.pt", lambda path: path.write_bytes(b""), "must be a whole checkpoint"),
        ("a.pt", lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "must be a whole checkpoint"),
        ("a.pt", lambda path: path.write_text("a text file"), "must be a whole checkpoint"),
        ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 40), "must be a whole checkpoint"),
        ("a.pt", lambda path: torch.save([1], path), "must hold a state dict, or one under state_dict, model"),
        ("a.pt", lambda path: torch.save({"step": 3}, path), "got 1 entries that are no tensors (step)"),
        ("a.pt", lambda path: torch.save({}, path), "got nothing"),
        ("a.pt", lambda path: torch.save({"model": {}, "ema": {}}, path), "got model and ema; save the one"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, make: Callable[[Path], object], text: str) -> None:
    make(tmp_path / name)
    with pytest.raises(OptionError) as error:
        load_subject(FACTORY, tmp_path / name)
    assert text in str(error.value)


@pytest.mark.parametrize("how", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Save) -> None:
    monkeypatch.chdir(tmp_path)
    how({"model": Evil()}, tmp_path / "a.pt")  # type: ignore[dict-item]
    with pytest.raises(OptionError, match=r"hold tensors only, since pickled code could do anything, got \w+\.mkdir"):
        load_subject(FACTORY, tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_cut_off_archive(tmp_path: Path, state: State) -> None:
    path = tmp_path / "a.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(OptionError, match="must be a whole checkpoint"):
        load_subject(FACTORY, path)


def test_the_command_names_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "labels.txt").write_text("sea\n")
    named = [FACTORY, "--prompts", str(tmp_path / "labels.txt"), "--checkpoint", str(tmp_path / "a.safetensors")]
    done = CliRunner().invoke(app, ["calibrate", *named, "--min-psnr", "9", "--out", str(tmp_path / "plan.json")])
    assert done.exit_code == 1
    assert "1 unexpected (other)" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
