"""What every test shares: seeds, hypothesis without time limits, and when marked tests are skipped."""

from __future__ import annotations

import os
from typing import Any

# Where test files are shared by processes, each has its part of the cores, and so have the commands that it runs.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# No test is timed; on CI the examples are the same in every run, at a desk new ones are tried.
settings.register_profile("sparvar", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sparvar")


TOGETHER = {"tests/export/test_artefact_refused.py": "tests/export/test_artefact.py"}
"""Files that share what takes minutes to make: a second process would wait for it with nothing to do."""


class Files(LoadFileScheduling):
    """Files are shared by processes, and those that belong together go to one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return TOGETHER.get(file, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Files | None:
    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


SLOW = ("aot", "search")
"""Markers that say why a test is slow."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skips = []
    if not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device")))
    if not os.environ.get("SPARVAR_UPSTREAM"):
        reason = "needs SPARVAR_UPSTREAM, a folder with the public models' repositories"
        skips.append(("upstream", pytest.mark.skip(reason=reason)))
    for item in items:
        if any(name in item.keywords for name in SLOW):
            item.add_marker("slow")
        for marker, skip in skips:
            if marker in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
