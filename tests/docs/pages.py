"""README and the pages of ``docs``, their headings, links and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FIGURES = [ROOT / "README.md", *sorted((ROOT / "docs" / "benchmarks").glob("*.md"))]
"""Pages whose tables of figures name the JSON that they were made from."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Targets of links and images within the repository."""
    return [target for target in LINK.findall(prose(page)) if "://" not in target and not target.startswith("mailto:")]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page names, as GitHub and the site make it of the heading."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        plain = LINK.sub(lambda link: link[0].partition("]")[0].lstrip("!["), heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.replace("`", "").lower()).strip().replace(" ", "-"))
    return found


@dataclass(frozen=True)
class Table:
    """A table, its rows without head and rule, and the paragraph that follows it."""

    page: Path
    rows: tuple[str, ...]
    after: str


def tables(page: Path) -> Iterator[Table]:
    """The page's tables."""
    blocks = [block.strip("\n") for block in prose(page).split("\n\n") if block.strip()]
    for number, block in enumerate(blocks):
        if block.startswith("|"):
            after = blocks[number + 1] if number + 1 < len(blocks) else ""
            yield Table(page, tuple(block.split("\n")[2:]), after)


def has_figures(row: str) -> bool:
    """Whether a row of a table states a measured quantity: a number with a unit, a factor, or a decimal."""
    plain = re.sub(r"`[^`]*`", "", LINK.sub("", row))
    return bool(re.search(r"\d ?(s|ms|µs|dB|MiB|GB|%)(?!\w)|\d\s?[x\u00d7](?!\d)|\d\.\d+(?!\w)", plain))
