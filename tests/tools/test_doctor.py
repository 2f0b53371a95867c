from __future__ import annotations

import json

import pytest

from sparvar import env
from sparvar.tools import cmd_doctor
from sparvar.tools.cmd_doctor import Finding
from tests.tools.conftest import run_command


def test_json_names_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_command("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == (0 if facts["ok"] else 1)
    subjects = {finding["subject"] for finding in facts["findings"]}
    assert {"python", "torch", "threads", "C++ compiler", "CPU kernels, native", "weights", "cache folder"} <= subjects
    assert set(facts["variables"]) == set(env.VARIABLES)


def test_exit_code_is_1_only_when_something_is_broken(invoke, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    fine, note = Finding("python", "ok", "3"), Finding("gpu", "note", "none", "none is needed")
    monkeypatch.setattr(cmd_doctor, "examine", lambda: [fine, note])
    done = invoke("doctor")
    assert done.exit_code == 0
    assert "everything the demo needs is here" in done.stdout
    assert "SPARVAR_CACHE_DIR" in done.stdout
    monkeypatch.setattr(cmd_doctor, "examine", lambda: [fine, Finding("weights", "broken", "no file")])
    done = invoke("doctor")
    assert done.exit_code == 1
    assert "broken: weights" in done.stdout
