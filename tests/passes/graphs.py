"""Graphs of a small model's site as Dynamo captures them, rewritten, as text."""

from __future__ import annotations

from pathlib import Path

import sparvar
from sparvar.backend import attachment_of
from sparvar.compiler.compiled_sites import site_graphs
from tests.tiny import generate, tiny_model, tiny_plan

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "first_scale_dense": (1, "dense"),
    "second_scale_dense": (2, "dense"),
    "decide": (4, "decide"),
    "sparse": (6, "sparse"),
}


def rewritten(grain: str = "attention") -> dict[str, str]:
    """Text of the graphs in ``CASES``."""
    site_graphs.cache_clear()
    model = tiny_model()
    sparvar.compile(model, tiny_plan(model), inner="eager", grain=grain)
    generate(model)
    attachment = attachment_of(model)
    assert attachment is not None
    texts = {(report.context.scale, report.context.kind): report.text for report in attachment.reports}
    return {name: texts[key] for name, key in CASES.items()}


def accept() -> None:
    """Write the golden files anew: ``python -m tests.passes.graphs``, then read the difference."""
    for name, text in rewritten().items():
        (GOLDEN / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    accept()
