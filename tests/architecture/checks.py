"""What the architecture tests look for, as functions of a source tree, so that they can be tried on a bad one."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 450

# Part of the package -> what its modules may import of sparvar. A name ending in ".*" includes what lies below it;
# without, only what that package re-exports. First match counts, so exceptions come first.
SHARED = (
    "sparvar.errors",
    "sparvar.env",
    "sparvar.files",
    "sparvar.heap",
    "sparvar.private_files",
    "sparvar.progress",
    "sparvar.version",
)
ALLOWED: dict[str, tuple[str, ...]] = {
    "sparvar.errors": (),
    "sparvar.version": (),
    "sparvar.env": ("sparvar.errors",),
    "sparvar.files": ("sparvar.errors",),
    "sparvar.heap": ("sparvar.errors",),
    "sparvar.private_files": ("sparvar.errors", "sparvar.env", "sparvar.files"),
    "sparvar.options": (*SHARED, "sparvar.scale_plans.*"),
    "sparvar.scale_plans": ("sparvar.errors", "sparvar.files", "sparvar.scale_plans.*"),
    "sparvar.kernels": ("sparvar.errors", "sparvar.env", "sparvar.files", "sparvar.private_files", "sparvar.kernels.*"),
    "sparvar.models": (*SHARED, "sparvar.scale_plans", "sparvar.models.*"),
    "sparvar.runtime": (
        *SHARED,
        "sparvar.options",
        "sparvar.scale_plans.*",
        "sparvar.kernels.*",
        "sparvar.models.*",
        "sparvar.runtime.*",
    ),
    "sparvar.passes": (*SHARED, "sparvar.options", "sparvar.scale_plans.*", "sparvar.kernels.*", "sparvar.passes.*"),
    "sparvar.compiler": (
        *SHARED,
        "sparvar.options",
        "sparvar.scale_plans",
        "sparvar.kernels",
        "sparvar.kernels.common.torch_compat",
        "sparvar.models.*",
        "sparvar.passes.*",
        "sparvar.runtime.*",
        "sparvar.compiler.*",
    ),
    "sparvar.zoo": ("sparvar.zoo.*",),
    "sparvar.evaluate": (*SHARED, "sparvar.kernels", "sparvar.scale_plans", "sparvar.evaluate.*"),
    "sparvar.calibrate": (
        *SHARED,
        "sparvar.backend",
        "sparvar.compiler.find_sites",
        "sparvar.evaluate.*",
        "sparvar.kernels",
        "sparvar.kernels.common.torch_compat",
        "sparvar.scale_plans",
        "sparvar.runtime.*",
        "sparvar.models.*",
        "sparvar.calibrate.*",
    ),
    "sparvar.artefact": (*SHARED, "sparvar.kernels", "sparvar.evaluate.metrics", "sparvar.artefact.*"),
    "sparvar.export": (
        *SHARED,
        "sparvar.options",
        "sparvar.artefact.*",
        "sparvar.compiler.*",
        "sparvar.kernels.*",
        "sparvar.evaluate.metrics",
        "sparvar.models.*",
        "sparvar.passes.*",
        "sparvar.runtime.*",
        "sparvar.scale_plans.*",
        "sparvar.zoo.*",
        "sparvar.export.*",
    ),
    "sparvar.tools": (
        "sparvar",
        *SHARED,
        "sparvar.artefact",
        "sparvar.calibrate",
        "sparvar.evaluate.*",
        "sparvar.export",
        "sparvar.runtime",
        "sparvar.models.*",
        "sparvar.scale_plans",
        "sparvar.kernels",
        "sparvar.zoo.*",
        "sparvar.tools.*",
    ),
    "sparvar": ("sparvar.*",),
}
WHY = {
    "sparvar.errors": "it is the bottom of the package and imports nothing of ours",
    "sparvar.version": "it is the bottom of the package and imports nothing of ours",
    "sparvar.env": "it is read by everything and imports only the errors",
    "sparvar.files": "it writes for everything and imports only the errors",
    "sparvar.heap": "it sets what the C library does and imports only the errors",
    "sparvar.private_files": "all that keeps code, kernels too, does so through it: it imports errors and paths only",
    "sparvar.options": "options are data: code that acts on them belongs to backend.py",
    "sparvar.scale_plans": "plans are pure data: code that runs them belongs to runtime/, that makes them to passes/",
    "sparvar.kernels": "kernels know tensors and integers: read the plan in runtime/ and pass numbers on",
    "sparvar.models": "models are facts about published models: what acts on them belongs to compiler/ or runtime/",
    "sparvar.runtime": "the runtime runs plans and sees no graph: graph work belongs to passes/, wiring to backend.py",
    "sparvar.passes": "passes rewrite graphs: state of a generation belongs to runtime/, wiring to backend.py",
    "sparvar.compiler": "the compiler makes what the runtime runs: wiring belongs to backend.py",
    "sparvar.zoo": "the zoo is written as any upstream model is and knows nothing of sparvar: move the code to tools/",
    "sparvar.evaluate": "measurements know tensors and plans: what is measured belongs to calibrate/ or tools/",
    "sparvar.calibrate": "calibration watches the runtime through the backend: a rule on graphs belongs to passes/",
    "sparvar.artefact": "artefacts run where there is neither model nor plan: what makes them belongs to export/",
    "sparvar.export": "export makes artefacts with any part of the package: what a user types belongs to tools/",
    "sparvar.tools": "tools use the public API: re-export what they need from the package's __init__.py",
    "sparvar": "only tools may import the whole package; name the module",
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package ``sparvar`` below ``root``."""
    found = {}
    for path in sorted((root / "sparvar").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file, which must not be changed."""
    return _parsed(path.read_text(encoding="utf-8"))


@functools.cache
def _parsed(text: str) -> ast.Module:
    # By the text, not by the path: tests write other trees in the same place.
    return ast.parse(text)


def _imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module of sparvar) for every import in a file, those inside functions too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            exported = _exports(known[base], known) if base in known else set()
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in known and alias.name not in exported else base


def import_edges(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere in it."""
    return {target for _, target in _imports(name, path, known) if target in known}


def _exports(path: Path, known: dict[str, Path]) -> set[str]:
    """Names a module takes from elsewhere: ``sparvar.explain`` the function hides the module of that name."""
    body = parse(path).body
    body = body + [inner for node in body if _for_type_checkers(node) for inner in getattr(node, "body", [])]
    imports = [node for node in body if isinstance(node, ast.ImportFrom) and not node.level]
    names = [(node.module, alias) for node in imports for alias in node.names]
    return {alias.asname or alias.name for module, alias in names if f"{module}.{alias.name}" not in known}


def _for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _allows(pattern: str, target: str) -> bool:
    if pattern.endswith(".*"):
        return target == pattern[:-2] != "sparvar" or target.startswith(pattern[:-1])
    return target == pattern


def _part(name: str) -> str | None:
    """The part a module belongs to; None for a folder without a rule."""
    part = ".".join(name.split(".")[:2])
    if part in ALLOWED:
        return part
    return "sparvar" if name.count(".") < 2 else None


def import_problems(root: Path) -> list[str]:
    """Imports against the direction of the package, each with where its code belongs."""
    known = modules(root)
    problems = []
    for name, path in known.items():
        where = path.relative_to(root)
        part = _part(name)
        if part is None or (part == "sparvar" and name != "sparvar" and path.name == "__init__.py"):
            problems.append(
                f"{where}: {name} is in no part with a rule; add its folder to ALLOWED and WHY in {__file__}"
            )
            continue
        for line, target in _imports(name, path, known):
            if target.split(".")[0] != "sparvar" or any(_allows(pattern, target) for pattern in ALLOWED[part]):
                continue
            allowed = ", ".join(ALLOWED[part]) or "nothing of sparvar"
            problems.append(f"{where}:{line}: {part} may import {allowed}, got {target}; {WHY[part]}")
    return problems


LAZY = "__getattr__, __dir__ = exports(__name__, {...})"


def _lazy_problem(node: ast.stmt) -> str:
    """What a statement is instead of the one form in which names are exported lazily; empty if it is that.

    ``if TYPE_CHECKING:`` with imports alone, ``else:`` the assignment `LAZY` with a table of the same names from the
    same modules.
    """
    if not isinstance(node, ast.If) or not _for_type_checkers(node):
        return type(node).__name__
    imported = {}
    for inner in node.body:
        if not isinstance(inner, ast.ImportFrom) or inner.level:
            return f"{type(inner).__name__} for type checkers"
        imported |= {alias.asname or alias.name: inner.module for alias in inner.names}
    if len(node.orelse) != 1 or not isinstance(node.orelse[0], ast.Assign):
        return "another branch than one assignment"
    value = node.orelse[0].value
    table = value.args[1] if isinstance(value, ast.Call) and len(value.args) == 2 else None
    if not isinstance(table, ast.Dict) or ast.unparse(node.orelse[0]).replace(ast.unparse(table), "{...}") not in (
        LAZY,
        LAZY.replace("__getattr__, __dir__", "(__getattr__, __dir__)"),
    ):
        return "another assignment"
    lazy = ast.literal_eval(table)
    wrong = sorted(name for name in {*imported, *lazy} if imported.get(name) != lazy.get(name))
    return f"a table that differs from the imports for type checkers in {', '.join(wrong)}" if wrong else ""


def init_problems(root: Path) -> list[str]:
    """Statements in ``__init__.py`` files that are more than re-exports; the top level's may be lazy."""
    problems = []
    for name, path in modules(root).items():
        if path.name != "__init__.py":
            continue
        for position, node in enumerate(parse(path).body):
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            docstring = position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            version = name == "sparvar" and names == ["__version__"]
            if docstring or version or names == ["__all__"] or isinstance(node, ast.Import | ast.ImportFrom):
                continue
            got = _lazy_problem(node) if name == "sparvar" else type(node).__name__
            if got:
                may = f", imports for type checkers with {LAZY}" if name == "sparvar" else ""
                problems.append(
                    f"{path.relative_to(root)}:{node.lineno}: an __init__.py must only re-export (docstring, imports, "
                    f"__all__{may}), got {got}; move it to a module of the folder"
                )
    return problems


def environment_problems(root: Path) -> list[str]:
    """Reads of the environment outside sparvar/env.py."""
    problems = []
    for name, path in modules(root).items():
        if name == "sparvar.env":
            continue
        for node in ast.walk(parse(path)):
            attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            names = {node.attr} if attribute and isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                names = {alias.name for alias in node.names}
            if names & {"environ", "environb", "getenv", "getenvb", "putenv"}:
                line = getattr(node, "lineno", 0)
                problems.append(
                    f"{path.relative_to(root)}:{line}: only sparvar/env.py reads the environment; add the variable to "
                    f"its table and read it through a function there"
                )
    return problems


def length_problems(root: Path) -> list[str]:
    """Python files of ``MAX_LINES`` lines or more in the package, its tests and benchmarks."""
    problems = []
    for folder in ("sparvar", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines >= MAX_LINES:
                must = f"must have fewer than {MAX_LINES} lines, got {lines}; split it by subject"
                problems.append(f"{path.relative_to(root)}: {must}")
    return problems


COMPATIBILITY = (
    "sparvar.artefact.engines.torch_compat",
    "sparvar.compiler.torch_compat",
    "sparvar.kernels.common.torch_compat",
)
"""Modules in which private names of torch and Triton may stand, one for each concern."""
LIBRARIES = ("torch", "triton")
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
_BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith(("__", "_sparvar"))


def _defined(tree: ast.AST) -> set[str]:
    """Private names that a module defines itself: functions, classes, variables, attributes of ``self``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return {name for name in found if _private(name)}


def _chain(node: ast.Attribute, bound: dict[str, str]) -> list[str]:
    """The parts of ``a.b.c``; a name bound by an import stands for what was imported, any other expression for "?"."""
    parts, value = [node.attr], node.value
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    root = bound.get(value.id, value.id) if isinstance(value, ast.Name) else "?"
    return [*root.split("."), *reversed(parts)]


def _is_librarys(parts: list[str]) -> bool:
    """Whether a dotted name has a private component of torch or Triton: ``torch._C``, ``self.torch._C``."""
    roots = [place for place, part in enumerate(parts) if part in LIBRARIES]
    return bool(roots) and any(_private(part) for part in parts[roots[0] :])


def private_names(path: Path, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every private name of torch or Triton in a file.

    Those are imports and attributes below the packages, attributes of any object that nothing of ``own``, the private
    names that sparvar itself defines, explains, and both as strings for `getattr` and its like and `import_module`.
    """
    tree = parse(path)
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [(f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names]
        else:
            continue
        for name, local in names:
            if name.split(".")[0] in LIBRARIES:
                bound |= {local: name} if local else {}
                if _is_librarys(name.split(".")):
                    yield node.lineno, name
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts = _chain(node, bound)
            foreign = [part for part in parts[1:] if _private(part) and part not in own | NAMED_TUPLE]
            if _is_librarys(parts) or (foreign and parts[0] not in ("self", "cls", "sparvar")):
                yield node.lineno, ".".join(parts)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            for text in texts[:1]:
                if called == "import_module" and _is_librarys(text.split(".")):
                    yield node.lineno, text
                if called in _BY_NAME and _private(text) and text not in own:
                    yield node.lineno, text


def own_names(root: Path) -> set[str]:
    """Private names that the package itself defines."""
    return set().union(*(_defined(parse(path)) for path in modules(root).values()))


def private_name_problems(root: Path) -> list[str]:
    """Private names of torch or Triton outside the modules that keep them in one place."""
    own = own_names(root)
    return [
        f"{path.relative_to(root)}:{line}: {name} is a private name of torch or triton, which another version moves; "
        f"give it a function in {' or '.join(COMPATIBILITY[1:])}, and a test beside the others of that module"
        for name, path in modules(root).items()
        if name not in COMPATIBILITY
        for line, name in private_names(path, own)
    ]


DEFINES = ("custom_op", "define", "impl", "register_fake", "register_kernel", "triton_op", "Library")
"""What of `torch.library` defines an op or says what one returns."""


def op_modules(root: Path) -> set[str]:
    """Modules that define an op of torch: by `torch.library`, or by ``define`` of our own on top of it."""
    found = set()
    for name, path in modules(root).items():
        tree = parse(path)
        ours = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "sparvar.kernels.common.library"
            and any(alias.name == "define" for alias in node.names)
            for node in ast.walk(tree)
        )
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if ours or used & {f"torch.library.{each}" for each in DEFINES}:
            found.add(name)
    return found
