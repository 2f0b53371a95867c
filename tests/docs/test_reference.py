"""The generated pages say what the code says, and the site's navigation names pages that are there."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparvar.env import VARIABLES
from sparvar.scale_plans import json_schema
from tests.docs.pages import ROOT, anchors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reference")
    _module("generate_reference").write_reference(made)
    return made


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_commands(folder: Path) -> None:
    text = (folder / "commands.md").read_text()
    names = ("demo", "calibrate", "transfer", "explain", "export", "run", "verify", "inspect", "doctor")
    assert {f"sparvar-{name}" for name in names} <= anchors(folder / "commands.md")
    assert "| `--out, -o PLAN` (required) |" in text
    assert "[bold]" not in text and "[cyan]" not in text


def test_plan(folder: Path) -> None:
    text = (folder / "plan.md").read_text()
    schema = json_schema()
    for field in schema["properties"]:
        assert f"| `{field}` |" in text
    assert {name.lower() for name in schema["$defs"]} <= anchors(folder / "plan.md")
    for target in re.findall(r"\]\(#([^)]*)\)", text):
        assert target in anchors(folder / "plan.md")


def test_environment_and_options(folder: Path) -> None:
    text = (folder / "environment.md").read_text()
    assert all(f"| `{name}` |" in text for name in VARIABLES)
    assert "| `grain` | `'auto'` |" in (folder / "options.md").read_text()


def test_navigation_names_every_page_but_the_notebooks(folder: Path) -> None:
    named = set(re.findall(r'"([\w/-]+\.md)"', (ROOT / "docs" / "zensical.toml").read_text()))
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    generated = {f"reference/{page.name}" for page in folder.iterdir()}
    dated = {name for name in written if name.startswith("notebook/20")}
    assert named == (written | generated) - dated


def test_staged_pages_link_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    _module("build_site").stage(tmp_path / "pages")
    page = (tmp_path / "pages" / "quickstart.md").read_text()
    assert "](files/examples/first_image.py.md)" in page
    assert "# examples/first_image.py" in (tmp_path / "pages" / "files" / "examples" / "first_image.py.md").read_text()
    assert (tmp_path / "pages" / "files" / "benchmarks" / "results" / "ops-cpu.json").is_file()
