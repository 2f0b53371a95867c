"""The private name of torch that running an artefact depends on: a failure says that it moved, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparvar.artefact.engines.torch_compat import package_runner
from tests.compat import name_stands


def test_package_loader(tmp_path: Path) -> None:
    keeper, use = "sparvar.artefact.engines.torch_compat.package_runner", "load AOTInductor packages without pickles"
    with name_stands("torch._C._aoti.AOTIModelPackageLoader", keeper, use):
        assert callable(torch._C._aoti.AOTIModelPackageLoader.boxed_run)
        with pytest.raises(RuntimeError):
            package_runner(tmp_path / "absent.pt2", 1, torch.device("cpu"))
