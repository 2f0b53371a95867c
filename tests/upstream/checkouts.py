"""The public models' own code, from a folder that the developer keeps beside the project.

``SPARVAR_UPSTREAM`` names the folder. The checkouts share module names (VAR and FlexVAR both have ``models``, ``utils``
and ``dist`` at their root), so that one family is on the import path at a time: its modules are put aside when another
family's tests begin, and come back with it. They stay in ``sys.modules`` while its tests run, because Dynamo looks
functions of other modules up there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.upstream import stand_ins


@dataclass
class Family:
    """One public repository.

    Attributes:
        folder: its name below ``SPARVAR_UPSTREAM``.
        roots: names of the top-level modules that belong to it.
        needs: packages that must be installed, since the model computes with them.
        stand_ins: modules that are imported and that we supply.
        if_absent: stand-ins of packages that are used where they are installed.
    """

    folder: str
    roots: tuple[str, ...]
    needs: tuple[str, ...] = ()
    stand_ins: dict[str, types.ModuleType] = field(default_factory=dict)
    if_absent: dict[str, types.ModuleType] = field(default_factory=dict)
    kept: dict[str, types.ModuleType] = field(default_factory=dict)

    def path(self) -> Path:
        return Path(os.environ["SPARVAR_UPSTREAM"]).expanduser() / self.folder

    def missing(self) -> str | None:
        """Why this family's tests cannot run, or None."""
        if not os.environ.get("SPARVAR_UPSTREAM"):
            return "needs SPARVAR_UPSTREAM, a folder with the public models' repositories"
        if not self.path().is_dir():
            return f"SPARVAR_UPSTREAM has no folder {self.folder}"
        absent = [name for name in self.needs if not _installed(name)]
        return f"{self.folder} imports {', '.join(absent)}, which is not installed" if absent else None

    def owns(self, module: str) -> bool:
        return module.split(".")[0] in self.roots


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


FAMILIES = {
    family.folder: family
    for family in (
        Family("VAR", ("models", "utils", "dist"), if_absent=stand_ins.hub_modules()),
        Family("FlexVAR", ("models", "utils", "dist"), if_absent=stand_ins.hub_modules()),
        Family(
            "Infinity",
            ("infinity",),
            needs=("einops", "tqdm"),
            stand_ins={**stand_ins.flash_attn_modules(), **stand_ins.timm_modules(), **stand_ins.torchvision_modules()},
            if_absent=stand_ins.empty_modules("imageio", "pytz"),
        ),
        Family(
            "hart",
            ("hart",),
            needs=("transformers",),
            stand_ins=stand_ins.hart_backend_modules(),
            if_absent=stand_ins.scipy_modules(),
        ),
    )
}


@contextmanager
def family_imports(folder: str) -> Iterator[Family]:
    """The family's modules are importable inside, and gone from ``sys.modules`` and ``sys.path`` afterwards."""
    family = FAMILIES[folder]
    reason = family.missing()
    if reason is not None:
        pytest.skip(reason)
    supplied = {name: module for name, module in family.if_absent.items() if not _installed(name.split(".")[0])}
    supplied.update(family.stand_ins)
    before = {name: sys.modules.get(name) for name in supplied}
    strangers = {name: sys.modules.pop(name) for name in list(sys.modules) if family.owns(name)}
    sys.modules.update(supplied)
    sys.modules.update(family.kept)
    sys.path.insert(0, str(family.path()))
    importlib.invalidate_caches()
    try:
        yield family
    finally:
        sys.path.remove(str(family.path()))
        family.kept = {name: sys.modules.pop(name) for name in list(sys.modules) if family.owns(name)}
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
        sys.modules.update(strangers)
