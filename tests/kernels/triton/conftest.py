"""These tests run Triton kernels under its interpreter; `tests/kernels/test_triton.py` starts them.

Triton decides when it is imported whether kernels are compiled or interpreted, and the rest of the suite needs it
compiled: so they have a process of their own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
