"""Names of a package that load their module on first use, so that importing the package loads nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def exports(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` (PEP 562) for a package that is being imported.

    ``where`` maps each exported name to the module that defines it. Submodules are found too, as if the package had
    imported them. An exported name that is also a submodule's always means the export: Python binds a submodule in
    its package when it is first imported, and a name that is bound never reaches ``__getattr__``, so the package
    leaves out that one binding. ``import package.name.x`` and ``from package.name import x`` do not read it.
    """
    module = sys.modules[package]

    class Package(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            if name in where and isinstance(value, ModuleType) and value.__name__ == f"{package}.{name}":
                return
            super().__setattr__(name, value)

    def load(name: str) -> Any:
        if name in where:
            value = getattr(import_module(where[name]), name)
            setattr(module, name, value)
            return value
        if name.isidentifier() and not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)

    module.__class__ = Package
    return load, lambda: sorted({*vars(module), *where})
