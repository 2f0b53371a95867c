"""Each test file is about one family and names it as ``FAMILY``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch._dynamo

from tests.upstream.checkouts import Family, family_imports


@pytest.fixture(scope="module", autouse=True)
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    with family_imports(request.module.FAMILY) as found:
        yield found


@pytest.fixture(autouse=True)
def _room_for_graphs() -> Iterator[None]:
    # Infinity compiles its own norm, for every batch size and width that a process meets; past the limit it would run
    # eagerly and differ in the last digits.
    with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=1024):
        yield
