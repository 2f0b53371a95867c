"""Build the site of ``docs/`` into ``build/site``; any warning is an error. ``make docs`` calls it.

Pages link to files of the repository outside ``docs``, such as scripts and results, by relative paths, so that these
work where the repository is browsed. The site has copies of those files: pages are staged in ``build/pages`` with the
files below ``files`` and the links changed. Python sources become pages; everything else is copied as it is.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from generate_reference import write_reference

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
STAGE = ROOT / "build"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
UNIT = re.compile(r"(\d) (s|ms|µs|dB|MiB|GB|%)(?!\w)")
"""A number and its unit stay on one line of a table's cell."""
LINK = re.compile(r"(\]\()([^)#\s]+)")


def stage(pages: Path) -> None:
    """Copy ``docs`` to ``pages``, with generated pages and what is linked from outside."""
    shutil.rmtree(pages, ignore_errors=True)
    skip = shutil.ignore_patterns("*.py", "*.toml", "__pycache__")
    shutil.copytree(DOCS, pages, ignore=skip)
    write_reference(pages / "reference")
    waiting = sorted(pages.rglob("*.md"))
    origins = {page: DOCS / page.relative_to(pages) for page in waiting}
    for page in waiting:
        text = relinked(page.read_text(), page, origins, waiting, pages)
        page.write_text(ROW.sub(lambda row: UNIT.sub("\\1\u00a0\\2", row[0]), text))


def relinked(text: str, page: Path, origins: dict[Path, Path], waiting: list[Path], pages: Path) -> str:
    """A page's text with links out of ``docs`` leading to copies; those that are pages are added to ``waiting``."""

    def change(found: re.Match[str]) -> str:
        target = found[2]
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        source = (origins[page].parent / target).resolve()
        if source.is_relative_to(DOCS):
            place = pages / source.relative_to(DOCS)
        elif source.is_file():
            place = pages / "files" / source.relative_to(ROOT)
            place = place.with_name(f"{place.name}.md") if source.suffix == ".py" else place
            if place not in origins:
                copied(source, place)
                origins[place] = source
                if source.suffix == ".md":
                    waiting.append(place)
        else:
            raise SystemExit(f"{origins[page].relative_to(ROOT)}: {target}: must be a file of the repository")
        return f"{found[1]}{os.path.relpath(place, page.parent)}"

    return LINK.sub(change, text)


def copied(source: Path, place: Path) -> None:
    """A file outside ``docs`` for the site: a Python source as a page, anything else as it is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".py":
        place.write_text(f"# {source.relative_to(ROOT)}\n\n```python\n{source.read_text()}```\n")
    else:
        shutil.copy(source, place)


def main() -> None:
    if importlib.util.find_spec("zensical") is None:
        raise SystemExit("zensical: must be installed, got no such package; pip install '.[docs]' (Python >= 3.11)")
    stage(STAGE / "pages")
    shutil.copy(DOCS / "zensical.toml", STAGE)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=STAGE, capture_output=True, text=True, check=False)
    said = COLOURS.sub("", done.stdout + done.stderr)
    print(said, end="")
    if done.returncode or "Warning" in said:
        sys.exit(done.returncode or 1)
    print(f"the site is in {STAGE / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
