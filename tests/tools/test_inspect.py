from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools.conftest import Tiny, run_command


@pytest.fixture
def edited(tiny: Tiny, tmp_path: Path) -> Path:
    """A plan changed by hand: its digest is stale."""
    path = tmp_path / "edited.json"
    path.write_text(tiny.path.read_text().replace('"sink_scales": 5', '"sink_scales": 4'))
    return path


def test_shows_a_plan(tiny: Tiny) -> None:
    done = run_command("inspect", tiny.path)
    assert done.returncode == 0
    assert "plan tiny" in done.stdout
    assert "64x64" in done.stdout
    assert "cs4a layers: 0" in done.stdout


def test_json_holds_the_plan_and_its_digest(invoke: Any, tiny: Tiny) -> None:
    facts = json.loads(invoke("inspect", tiny.path, "--json").stdout)
    assert facts["ok"] is True
    assert facts["digest"] == tiny.plan.digest
    assert facts["plan"]["layers"] == ["cs4a", "csla"]


def test_diff(invoke: Any, tiny: Tiny, edited: Path) -> None:
    done = invoke("inspect", tiny.path, "--diff", edited)
    assert done.exit_code == 0
    assert done.stdout == "sink_scales: 5 -> 4\n"
    assert "edited by hand?" in done.stderr
    assert invoke("inspect", tiny.path, "--diff", tiny.path).stdout == "the plans are equal\n"


def test_check_lists_every_contradiction(invoke: Any, tiny: Tiny, tmp_path: Path) -> None:
    raw = json.loads(tiny.path.read_text())
    raw.update(decision_scale=99, layers=["cs4a", "fast"], budgets=1)
    raw["cs4a"]["13"]["budget"] = 2.0
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(raw))
    done = invoke("inspect", path, "--check")
    assert done.exit_code == 1
    for text in ("budgets: unknown field", "decision_scale: must be between", "'fast'", "cs4a.13.budget: must be"):
        assert text in done.stderr
    problems = json.loads(invoke("inspect", path, "--check", "--json").stdout)["problems"]
    assert len(problems) >= 4
    sound = invoke("inspect", tiny.path, "--check")
    assert sound.exit_code == 0
    assert "no contradictions" in sound.stdout


def test_rehash_accepts_an_edit(invoke: Any, edited: Path) -> None:
    assert "edited by hand?" in invoke("inspect", edited).stderr
    assert invoke("inspect", edited, "--rehash").exit_code == 0
    again = invoke("inspect", edited, "--check")
    assert again.exit_code == 0
    assert again.stderr == ""


def test_rehash_wants_a_file(invoke: Any) -> None:
    done = invoke("inspect", "landscape", "--rehash")
    assert done.exit_code == 1
    assert "--rehash: must be the path of a plan file" in done.stderr
