"""What every test shares: seeds, hypothesis without time limits, and when marked tests are skipped."""

from __future__ import annotations

import os

# Where test files are shared by processes, each has its part of the cores, and so have the commands that it runs.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import pytest
import torch
from hypothesis import settings

# No test is timed; on CI the examples are the same in every run, at a desk new ones are tried.
settings.register_profile("sparvar", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sparvar")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skips = []
    if not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device")))
    if not os.environ.get("SPARVAR_UPSTREAM"):
        reason = "needs SPARVAR_UPSTREAM, a folder with the public models' repositories"
        skips.append(("upstream", pytest.mark.skip(reason=reason)))
    for item in items:
        for marker, skip in skips:
            if marker in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
