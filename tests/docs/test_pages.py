"""Links of README and documents lead somewhere, figures name their source, and README stays short."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import FIGURES, PAGES, ROOT, anchors, has_figures, links, prose, tables

RESULT = re.compile(r"\]\((?:\.\./)*benchmarks/results/([\w.-]+\.json)\)")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or not place.is_relative_to(ROOT):
            broken.append(target)
        elif anchor and anchor not in anchors(place):
            broken.append(f"{target}: no such heading")
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths of sources in backquotes; the notebook's are those of their day."""
    if page.parent.name == "notebook":
        return
    named = re.findall(r"`((?:sparvar|tests|benchmarks|examples|docs)/[\w./-]*\w/?)`", prose(page))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", FIGURES, ids=_name)
def test_figures_name_the_json_they_were_made_from(page: Path) -> None:
    unsourced = []
    for table in tables(page):
        for row in table.rows:
            names = RESULT.findall(row) or RESULT.findall(table.after)
            if has_figures(row) and not names:
                unsourced.append(row)
            for name in names:
                json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    assert not unsourced


@pytest.mark.parametrize("page", FIGURES, ids=_name)
def test_commits_at_which_figures_were_measured_exist(page: Path) -> None:
    named = set(re.findall(r"\bat ([0-9a-f]{7})\b", prose(page)))
    known = subprocess.run(
        ["git", "log", "--all", "--format=%h"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if known.returncode or (ROOT / ".git" / "shallow").exists():
        pytest.skip("needs the repository's history")
    assert not [commit for commit in named if not any(each.startswith(commit) for each in known.stdout.split())]


def test_readme_is_short_and_runnable_early() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 800
    before, _, after = text.partition("```python\n")
    assert before.count("\n") + 1 <= 25
    ast.parse(after.partition("```")[0])
    for table in tables(ROOT / "README.md"):
        if any(has_figures(row) and RESULT.search(row) for row in table.rows):
            assert len(table.rows) <= 5
            assert all(RESULT.search(row) for row in table.rows)


def test_examples_and_notebook_pages_are_listed() -> None:
    index = set(links(ROOT / "docs" / "notebook" / "index.md"))
    assert {page.name for page in (ROOT / "docs" / "notebook").glob("20*.md")} <= index
    linked = {Path(target).name for page in PAGES for target in links(page)}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} <= linked
