from __future__ import annotations

import pytest
import torch

from sparvar import kernels
from sparvar.evaluate import memory
from sparvar.evaluate.memory import live_peak, peak_memory


@pytest.mark.parametrize("by_sampling", [False, True])
def test_peak_memory_sees_what_was_freed_again(by_sampling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_sampling:
        monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    size = 256 << 20
    with peak_memory(torch.device("cpu")) as peak:
        filled = torch.ones(size // 4)
        filled.add_(1)
        del filled
    assert peak.bytes is not None
    assert 0.9 * size < peak.bytes < 1.5 * size
    assert ("sampled" in peak.method) == by_sampling


def test_live_peak_counts_what_lives_at_once_and_cache_buffers() -> None:
    def run() -> None:
        first = torch.empty(10 << 20, dtype=torch.uint8)
        del first
        second = torch.empty(6 << 20, dtype=torch.uint8)
        third = torch.empty(8 << 20, dtype=torch.uint8)
        del second, third

    assert 14 << 20 <= live_peak(run) < 15 << 20
    kept = []

    def grow() -> None:
        cache = torch.zeros(1, 1, 4, 64)
        kept.append(kernels.kv_extend(cache, kernels.kv_acquire(cache, 1 << 14, 2), 4, 1 << 14, 2))

    assert 4 << 20 <= live_peak(grow) < 5 << 20
