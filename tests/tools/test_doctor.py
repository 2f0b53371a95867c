from __future__ import annotations

import json

import pytest

from sparvar import env, kernels
from sparvar.tools.commands import doctor
from sparvar.tools.commands.doctor import Finding
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
    monkeypatch.setattr(doctor, "examine", lambda: [fine, note])
    done = invoke("doctor")
    assert done.exit_code == 0
    assert "everything the demo needs is here" in done.stdout
    assert "SPARVAR_CACHE_DIR" in done.stdout
    monkeypatch.setattr(doctor, "examine", lambda: [fine, Finding("weights", "broken", "no file")])
    done = invoke("doctor")
    assert done.exit_code == 1
    assert "broken: weights" in done.stdout


def test_triton_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "gpu_status", list)
    (finding,) = doctor._triton()
    assert finding.state == "note"
    assert finding.found.startswith("no GPU here; 5 kernels compile"), "select_columns and map_columns among them"
    assert "kernels compile for sm_80, sm_89, sm_90, sm_100, gfx90a, gfx942" in finding.found


@pytest.mark.parametrize(("asked", "state"), [("auto", "note"), ("triton", "broken")])
def test_triton_per_gpu(asked: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = kernels.GpuStatus("NVIDIA H200", True, "")
    old = kernels.GpuStatus("Tesla V100", False, "compute capability 7.0 is below 8.0")
    monkeypatch.setattr(kernels, "gpu_status", lambda: [good, old])
    monkeypatch.setenv("SPARVAR_GPU_KERNELS", asked)
    first, second = doctor._triton()
    assert first == Finding("GPU kernels, Triton, GPU 0", "ok", "run on NVIDIA H200, pinned configurations")
    assert (second.state, second.subject) == (state, "GPU kernels, Triton, GPU 1")
    assert second.found == "torch ops run on Tesla V100, many times slower: compute capability 7.0 is below 8.0"


def test_a_wrong_choice_of_gpu_kernels_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARVAR_GPU_KERNELS", "fast")
    monkeypatch.setattr(kernels, "gpu_status", list)
    (finding,) = doctor._triton()
    assert finding.state == "broken" and "must be auto, triton or portable" in finding.found
