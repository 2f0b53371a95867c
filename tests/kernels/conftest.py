"""Every test of an op runs on both implementations, with NaN in all fresh memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparvar import kernels
from tests.kernels.support import poison_scratch


@pytest.fixture(params=["native", "portable"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the implementation of CPU ops for one test."""
    if request.param == "native":
        monkeypatch.setenv("SPARVAR_CPU_KERNELS", "auto")
        if not (status := kernels.native_status()).usable:
            pytest.skip(f"no native kernels: {status.reason}")
    monkeypatch.setenv("SPARVAR_CPU_KERNELS", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _poisoned(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty gives NaN, or the largest integer; the native kernels' scratch holds NaN."""
    if "implementation" in request.fixturenames and request.getfixturevalue("implementation") == "native":
        poison_scratch()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))  # work that is split among threads, however few a test process has
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
