"""`sparvar transfer` as a user runs it, on a small model, and the subjects of other sizes behind it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import sparvar
from sparvar.calibrate import Subject, compare_plans
from sparvar.calibrate.candidates.base_plan import base_plan
from sparvar.errors import OptionError, PlanError, SparvarError
from sparvar.models.subject import as_subject, scaled_schedule
from sparvar.scale_plans import Plan, transfer
from sparvar.scale_plans.presets.schedules import squares
from sparvar.tools.cli import app
from tests.calibrate import factories
from tests.tiny import dense_changes, tiny_model, tiny_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return tiny_plan(tiny_model())


@pytest.fixture
def subject() -> Subject:
    return as_subject(factories.tiny(), "tests:tiny")


def arguments_of(folder: Path, plan: Plan, *arguments: str, model: str = "tiny", labels: str = "sea\n3\n") -> list[str]:
    plan.save(folder / "plan.json")
    (folder / "labels.txt").write_text(labels)
    named = ["--model", f"tests.calibrate.factories:{model}", "--prompts", str(folder / "labels.txt")]
    given = ["transfer", str(folder / "plan.json"), *named, "--out", str(folder / "out" / "there.json")]
    return [*given, "--inner", "eager", "--images", "2", *arguments]


def run(folder: Path, plan: Plan, *arguments: str, **how: Any) -> Result:
    return CliRunner().invoke(app, arguments_of(folder, plan, *arguments, **how), env={"COLUMNS": "200"})


@pytest.mark.slow
def test_carries_a_plan_and_measures_it(tmp_path: Path, plan: Plan) -> None:
    command = [sys.executable, "-m", "sparvar.tools", *arguments_of(tmp_path, plan, "--size", "24x48")]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "transferable" in done.stdout and "of dense" in done.stdout
    there = Plan.load(tmp_path / "out" / "there.json", strict_digest=True)
    assert there.schedule == ((1, 2), (2, 3), (2, 5), (3, 6), (5, 9), (6, 12))
    assert there.digest == transfer(plan, there.schedule).digest
    assert there.planned_sites() == plan.planned_sites()
    assert 0 < there.measured["psnr_db_least"] <= there.measured["psnr_db"] < 100
    assert there.measured["seconds"] > 0 and there.measured["dense_seconds"] > 0
    assert not there.provenance.calibrated
    assert f"carried over from tiny ({plan.digest})" in there.provenance.note
    assert "measured on 2 images" in there.provenance.note
    again = run(tmp_path, plan, "--size", "24x48")
    assert again.exit_code == 0, again.stderr
    repeated = Plan.load(tmp_path / "out" / "there.json")
    assert repeated.measured["psnr_db"] == pytest.approx(there.measured["psnr_db"], abs=0.01)


def test_a_schedule_of_one_s_own(tmp_path: Path, plan: Plan) -> None:
    grids = "1x1 1x2 2x3 3x5 4x8 6x12"
    done = run(tmp_path, plan, "--size", "24x48", "--schedule", grids)
    assert done.exit_code == 0, done.stderr
    there = Plan.load(tmp_path / "out" / "there.json")
    assert there.schedule == ((1, 1), (1, 2), (2, 3), (3, 5), (4, 8), (6, 12))


def test_without_a_size_it_is_the_model_s_schedule(tmp_path: Path, plan: Plan) -> None:
    small = transfer(plan, squares((1, 2, 4, 6)))
    done = run(tmp_path, small)
    assert done.exit_code == 0, done.stderr
    assert Plan.load(tmp_path / "out" / "there.json").schedule == plan.schedule


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--size", "24x47"],
            "--size: must have sides that are multiples of 4, at least 12, for model tiny, got 24x47",
        ),
        (["--size", "8x32"], "at least 12, for model tiny, got 8x32; it was made for 32x32"),
        (["--size", "0x0"], "at least 12, for model tiny, got 0x0"),
        (["--size", "wide"], "--size: must be height and width in pixels, like 384x640, got 'wide'"),
        (["--size", "-8x8"], "--size: must be height and width in pixels"),
        (["--size", "40000x40000"], "must have sides between 1 and 4096, got [10000, 10000]"),
        (["--schedule", "1x1 2x"], "--schedule: schedule: must be grids like 1x1 2x2 4x3, got 2x"),
        (["--schedule", " "], "--schedule: must be grids"),
        (["--schedule", "1x1 2x2"], "must have 6 grids (h, w), one per scale of the model, got 2"),
        (
            ["--size", "24x48", "--schedule", "1x1 2x2 3x3 4x4 5x5 6x6"],
            "--schedule: must end with 6x12, the last grid of --size 24x48, got 6x6",
        ),
    ],
)
def test_bad_input(tmp_path: Path, plan: Plan, arguments: list[str], text: str) -> None:
    done = run(tmp_path, plan, *arguments)
    assert done.exit_code == 1
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "there.json").exists()


def test_a_model_of_one_size(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    fixed = dataclasses.replace(subject, resize=None, reschedule=None)
    monkeypatch.setattr(factories, "fixed", lambda: fixed, raising=False)
    done = run(tmp_path, plan, "--size", "24x48", model="fixed")
    assert done.exit_code == 1
    assert "--size: must be left out: model tiny draws one size" in " ".join(done.stderr.split())


def test_a_plan_of_another_model(tmp_path: Path, plan: Plan) -> None:
    other = plan.replace(model={**plan.model.model_dump(), "fingerprint": "sha256:" + "0" * 64})
    done = run(tmp_path, other, "--size", "24x48")
    assert done.exit_code == 1
    assert "be made for this LandscapeVAR" in " ".join(done.stderr.split())


def test_weights_of_a_file_are_drawn_with(tmp_path: Path, plan: Plan) -> None:
    save_file(tiny_model(seed=2).state_dict(), tmp_path / "w.safetensors")
    figures = []
    for arguments in ([], ["--checkpoint", str(tmp_path / "w.safetensors")]):
        done = run(tmp_path, plan, "--size", "24x48", *arguments)
        assert done.exit_code == 0, done.stderr
        figures.append(Plan.load(tmp_path / "out" / "there.json").measured["psnr_db"])
    assert abs(figures[0] - figures[1]) > 0.01


def test_images_of_a_dense_plan_are_the_model_s(plan: Plan, subject: Subject) -> None:
    assert subject.resize is not None
    sized = subject.resize(24, 48)
    dense = transfer(plan.replace(**dense_changes()), sized.schedule)
    found = compare_plans(sized, dense, ["sea"], 2, 0, "eager")
    assert found["psnr_db_least"] > 80  # 80 dB is 1e-4 in each pixel: rounding in another order
    assert len(found["seconds"]) == len(found["dense_seconds"]) == 2
    assert sparvar.attachment_of(subject.model) is None


def test_bad_comparisons(plan: Plan, subject: Subject) -> None:
    with pytest.raises(OptionError, match=r"plan tiny: must be for 6 scales, 1x2 to 6x12.*got one for 6 scales, 1x1"):
        compare_plans(subject.resize(24, 48), plan, ["sea"], 1, 0, "eager")  # type: ignore[misc]
    with pytest.raises(OptionError, match="at least one prompt and image, got 0 and 1"):
        compare_plans(subject, plan, [], 1, 0, "eager")
    with pytest.raises(PlanError, match="be made for this"):
        other = plan.model.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
        compare_plans(subject, plan.model_copy(update={"model": other}), ["sea"], 1, 0, "eager")
    broken = dataclasses.replace(subject, draw=lambda model, prompt, seed: torch.full((2,), float("nan")))
    with pytest.raises(SparvarError, match="tiny image of prompt 'sea': must be finite, got NaN"):
        compare_plans(broken, plan, ["sea"], 1, 0, "eager")
    assert sparvar.attachment_of(subject.model) is None


def test_schedules_of_sizes() -> None:
    own = squares((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
    assert scaled_schedule(own, (64, 64)) == own
    wide = scaled_schedule(own, (48, 80))
    assert wide[-4:] == ((24, 40), (30, 50), (36, 60), (48, 80))
    assert wide[:3] == ((1, 1), (2, 3), (3, 5))
    for grid in ((3, 3), (17, 200), (96, 1)):
        grids = scaled_schedule(own, grid)
        assert grids[-1] == grid
        pairs = itertools.pairwise(grids)
        assert all(h <= later_h and w <= later_w for (h, w), (later_h, later_w) in pairs)
        assert all(min(sides) >= 1 for sides in grids)


def test_a_resized_subject_draws_that_size_and_resizes_again(subject: Subject) -> None:
    assert subject.resize is not None
    sized = subject.resize(48, 16)
    assert sized.draw(sized.model, "sea", 0).shape == (3, 48, 16)
    assert base_plan(sized).schedule == sized.schedule
    assert sized.resize is not None and sized.resize(32, 32).schedule == subject.schedule
