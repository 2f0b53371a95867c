"""The shape of the package as numbers: circles of imports, files in a folder, parameters of a function."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx

from tests.architecture.checks import import_edges, modules, parse

MAX_FILES = 16
MAX_PARAMETERS = 8


def circle_problems(root: Path) -> list[str]:
    """Circles of imports between modules; those inside functions and for type checkers count as well."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    known = modules(root)
    for name, path in known.items():
        graph.add_edges_from((name, target) for target in import_edges(name, path, known) if target != name)
    circles = sorted(sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1)
    return [
        f"modules must not import each other in a circle, got {', '.join(circle)}; move what both need to a third"
        for circle in circles
    ]


def folder_problems(root: Path) -> list[str]:
    """Folders of the package with more than ``MAX_FILES`` Python files."""
    problems = []
    for folder in sorted({path.parent for path in (root / "sparvar").rglob("*.py")}):
        count = len(list(folder.glob("*.py")))
        if count > MAX_FILES:
            where = folder.relative_to(root)
            problems.append(f"{where}: must hold at most {MAX_FILES} Python files, got {count}; make rooms by subject")
    return problems


def parameter_problems(root: Path) -> list[str]:
    """Functions of the package with more than ``MAX_PARAMETERS`` parameters.

    Left out: functions whose signature a decorator of Triton, of Gluon or of the command line reads.
    """
    problems = []
    for name, path in modules(root).items():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _signature_is_read(node):
                continue
            given = node.args
            names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([each for each in names if each not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                problems.append(
                    f"{path.relative_to(root)}:{node.lineno}: {name}.{node.name} must take at most {MAX_PARAMETERS}"
                    f" parameters, got {count}; put those that belong together into one frozen record"
                )
    return problems


def _signature_is_read(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    texts = [ast.unparse(each).partition("(")[0] for each in node.decorator_list]
    return any(text.split(".")[-1] in READ_BY for text in texts)


READ_BY = ("jit", "command", "handled")
"""Last names of decorators that read a signature."""
