"""`benchmarks/gpu.py`, which runs in full only where a GPU is: here its dry run, and what it says of its tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def python(*arguments: str) -> list[str]:
    """Return the lines that the arguments to python print, in the folder of the benchmarks, without a GPU."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=FOLDER,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_dry_run() -> None:
    before = sorted((FOLDER / "results").iterdir())
    lines = python("gpu.py", "--dry-run", "--skip-tests")
    assert "".join(lines[3:6]) == '{ "not run": "--skip-tests"}', "between the kernels and the transformers"
    told = lines[:3] + [line for line in lines[6:] if " {" in line]
    # A transformer's line goes on with the seconds of its first calls.
    cases = {line.split(" {")[0]: json.JSONDecoder().raw_decode(line, line.index("{"))[0] for line in told}
    assert len([name for name in cases if name.startswith("toy ")]) == 3
    for name, found in cases.items():
        wanted = {"eager", "inductor"} if name == "tiny" else {"dense_ms", "csla_speedup", "lists_share"}
        assert wanted <= set(found), name
    assert sorted((FOLDER / "results").iterdir()) == before, "a dry run writes nothing"


CORRECTNESS = """
import json, subprocess, gpu
ran = []
def run(command, **options):
    ran.append((command, options["env"].get("PYTORCH_NO_CUDA_MEMORY_CACHING")))
    return subprocess.CompletedProcess(command, 0, "3 passed", "")
gpu.subprocess = type("fake", (), {"run": staticmethod(run)})
gpu.find_sanitizer = lambda: TOOL
print(json.dumps([gpu.correctness(quick=True), ran]))
"""


@pytest.mark.parametrize("tool", [None, "/there/compute-sanitizer"])
def test_the_sanitizer_runs_or_is_said_to_be_missing(tool: str | None) -> None:
    found, ran = json.loads(python("-c", CORRECTNESS.replace("TOOL", repr(tool)))[-1])
    assert found["pytest"] == {"exit": 0, "last": "3 passed"}
    if tool is None:
        assert found["compute-sanitizer"]["not run"].startswith("compute-sanitizer is neither")
        assert len(ran) == 1
    else:
        assert found["compute-sanitizer"] == {"exit": 0, "last": "3 passed"}
        assert ran[0][1] is None and ran[1][0][0] == tool and ran[1][1] == "1"
