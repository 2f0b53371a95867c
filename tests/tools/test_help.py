from __future__ import annotations

from typing import Any

import pytest

from sparvar.version import __version__
from tests.tools.conftest import run_command

COMMANDS = (
    ["demo"],
    ["calibrate"],
    ["transfer"],
    ["explain"],
    ["inspect"],
    ["doctor"],
    ["bench", "ops"],
    ["bench", "generate"],
    ["bench", "methods"],
)


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_help_teaches(invoke: Any, name: list[str]) -> None:
    done = invoke(*name, "--help")
    assert done.exit_code == 0
    assert "Example" in done.stdout
    assert f"sparvar {' '.join(name)}" in done.stdout
    assert "Exit codes" in done.stdout


def test_version_and_usage_as_a_user_sees_them() -> None:
    assert run_command("--version").stdout == f"sparvar {__version__}\n"
    wrong = run_command("dmeo")
    assert wrong.returncode == 2
    assert "No such command 'dmeo'" in wrong.stderr
