from __future__ import annotations

import json
import math

import pytest
import torch

from sparvar import kernels
from sparvar.evaluate import memory
from sparvar.evaluate.memory import live_peak, peak_memory
from sparvar.evaluate.timing import Spread, compare, interleave, ratio
from sparvar.tools.console import as_json


def test_spread_of_few_and_many() -> None:
    assert Spread.of([3.0]).as_dict() == {"median": 3.0, "q25": 3.0, "q75": 3.0, "iqr": 0.0, "n": 1}
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]).as_dict() == {"median": 3.0, "q25": 2.0, "q75": 4.0, "iqr": 2.0, "n": 5}
    assert ratio([2.0, 9.0], [1.0, 3.0]).median == 2.5


def test_variants_take_turns_after_a_warm_up() -> None:
    seen: list[str] = []
    seconds = interleave({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=2)
    assert seen == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_psnr_and_ssim() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.8
    psnr_db, ssim = compare(image + 0.1, image)
    assert psnr_db == pytest.approx(20.0, abs=1e-3)  # 10 log10(1 / 0.01)
    assert 0 < ssim < 1
    assert compare(image, image.clone()) == (math.inf, 1.0)


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


def test_json_has_no_infinities() -> None:
    assert json.loads(as_json({"a": [math.inf, 1.0], "b": (math.nan,)})) == {"a": [None, 1.0], "b": [None]}


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
