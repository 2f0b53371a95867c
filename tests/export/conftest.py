"""One artefact, exported by the command as a user runs it: stopped once by SIGKILL, then whole."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.export.small import least_plan

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Exported:
    """An artefact, and what its export did.

    Attributes:
        folder: the artefact.
        left_by_kill: files beside the target after the first attempt was killed.
        compiled_before_kill: programs that it had finished.
        first_compiled: number that the second attempt printed after its first program.
        lines: what the second attempt printed.
    """

    folder: Path
    left_by_kill: list[str]
    compiled_before_kill: int
    first_compiled: int
    lines: list[str]


def environment(**changes: str) -> dict[str, str]:
    """Of commands, which find this checkout and its tests."""
    return {"OMP_NUM_THREADS": "2", **os.environ, "PYTHONPATH": str(ROOT), **changes}


def command(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run ``sparvar`` with arguments."""
    return subprocess.run(
        [sys.executable, "-m", "sparvar.tools", *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The least model with two images a run; made once, whichever process of the test run comes first."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # every worker has a folder of its own in that of the run
        common = common.parent
    place, made = common / "exported", common / "exported.json"
    with FileLock(common / "exported.lock"):
        if not made.exists():
            place.mkdir()
            found = dataclasses.asdict(export(place))
            made.write_text(json.dumps({**found, "folder": str(found["folder"])}))
    found = json.loads(made.read_text())
    return Exported(**{**found, "folder": Path(found["folder"])})


def export(place: Path) -> Exported:
    """Export into a folder, killed once."""
    least_plan().save(place / "plan.json")
    target = place / "small"
    arguments = ["export", "tests.export.small:least", "--plan", str(place / "plan.json"), "--out", str(target)]
    arguments += ["--batch", "2", "--licence", "CC0"]
    words = [sys.executable, "-m", "sparvar.tools", *arguments]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if "(2 of" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, "".join(seen)
    left = sorted(path.name for path in place.iterdir() if path.name != "plan.json")
    finished = len([path for path in place.rglob("*.pt2") if not path.name.startswith(".")])
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"\((\d+) of \d+\)", done.stderr)
    return Exported(target, left, finished, int(counts[0]), done.stderr.splitlines() + done.stdout.splitlines())
