"""What every test shares: seeds, hypothesis without time limits, and when marked tests are skipped."""

from __future__ import annotations

import os

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
