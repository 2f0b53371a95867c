"""`kv_acquire` and `kv_extend` mean `torch.cat`, append in place where they can, and keep nothing alive."""

from __future__ import annotations

import gc
import mmap
import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError
from sparvar.kernels.kv_cache import reference
from sparvar.kernels.kv_cache.buffers import live_buffers
from sparvar.kernels.kv_cache.memory import idle_bytes

CAPACITY = 64


def cat(previous: Tensor, new: Tensor, dim: int = 2, capacity: int = CAPACITY) -> Tensor:
    token = kernels.kv_acquire(previous, capacity, dim)
    return kernels.kv_extend(new, token, previous.shape[dim], capacity, dim)


def fresh(batch: int, length: int, dim: int) -> Tensor:
    return torch.randn(batch, 3, length, 8) if dim == 2 else torch.randn(batch, length, 3, 8)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dim=st.sampled_from([1, 2]),
    inference=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["cat", "cat", "slice", "tail", "halve", "copy", "drop"]),
            st.integers(0, 5),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=14,
    ),
)
def test_any_history_is_cat(dim: int, inference: bool, steps: list[tuple[str, int, int]]) -> None:
    """Caches branch, are cut at either end, halved, copied or dropped, and go on growing."""
    with torch.inference_mode(inference):
        first = fresh(4, 2, dim)
        pairs = [(first, first.clone())]  # (grown by the ops, grown by torch.cat)
        for action, which, amount in steps:
            ours, theirs = pairs[which % len(pairs)]
            length = ours.shape[dim]
            if action == "cat":
                new = fresh(ours.shape[0], amount, dim)
                if length + amount <= CAPACITY:
                    pairs.append((cat(ours, new, dim), reference.run(theirs, new, dim)))
            elif action == "slice":
                kept = max(length - amount, 0)
                pairs.append((ours.narrow(dim, 0, kept), theirs.narrow(dim, 0, kept)))
            elif action == "tail":
                start = min(amount, length)
                pairs.append((ours.narrow(dim, start, length - start), theirs.narrow(dim, start, length - start)))
            elif action == "halve" and ours.shape[0] > 1:
                pairs.append((ours[: ours.shape[0] // 2], theirs[: ours.shape[0] // 2]))
            elif action == "copy":
                pairs.append((ours.clone(), theirs.clone()))
            elif action == "drop" and len(pairs) > 1:
                del pairs[which % len(pairs)]
            for ours, theirs in pairs:
                assert torch.equal(ours, theirs)


def test_appends_in_place_at_the_tail() -> None:
    cache = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    address, expected = cache.data_ptr(), cache.clone()
    for _ in range(4):
        new = fresh(2, 6, 2)
        cache, expected = cat(cache, new), torch.cat((expected, new), 2)
        assert cache.data_ptr() == address
    assert torch.equal(cache, expected)
    assert cache.stride() == (3 * CAPACITY * 8, CAPACITY * 8, 8, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :, :4],
        lambda x: x[:, :, 1:],
        lambda x: x[:1],
        lambda x: x.clone(),
        lambda x: x[:, 1:],
        lambda x: x[..., :4],
        lambda x: x.flip(0),
        lambda x: x.transpose(0, 1),
    ],
)
def test_copies_whatever_is_not_the_tail(change: Any) -> None:
    cache = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    other = change(cache)
    new = torch.randn(*other.shape[:2], 2, other.shape[3])
    grown = cat(other, new)
    assert torch.equal(grown, torch.cat((other, new), 2))
    assert grown.untyped_storage().data_ptr() != cache.untyped_storage().data_ptr()


def test_branches_do_not_overwrite_each_other() -> None:
    root = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    kept, a, b = root.clone(), fresh(2, 4, 2), fresh(2, 4, 2)
    left, right = cat(root, a), cat(root, b)
    assert left.data_ptr() == root.data_ptr() != right.data_ptr()
    assert torch.equal(left, torch.cat((kept, a), 2)) and torch.equal(right, torch.cat((kept, b), 2))


def test_two_acquisitions_before_two_extensions() -> None:
    root = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    tokens = [kernels.kv_acquire(root, CAPACITY, 2) for _ in range(2)]
    news = [fresh(2, 4, 2) for _ in range(2)]
    grown = [kernels.kv_extend(new, token, 8, CAPACITY, 2) for new, token in zip(news, tokens, strict=True)]
    for new, result in zip(news, grown, strict=True):
        assert torch.equal(result, torch.cat((root, new), 2))


def test_a_token_used_twice_is_right_both_times() -> None:
    root = fresh(2, 5, 2)
    token = kernels.kv_acquire(root, CAPACITY, 2)
    a, b = fresh(2, 4, 2), fresh(2, 6, 2)
    left, right = (kernels.kv_extend(new, token, 5, CAPACITY, 2) for new in (a, b))
    assert torch.equal(left, torch.cat((root, a), 2)) and torch.equal(right, torch.cat((root, b), 2))


def test_an_unused_acquisition_only_costs_a_copy() -> None:
    root = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    kernels.kv_acquire(root, CAPACITY, 2)
    new = fresh(2, 4, 2)
    assert torch.equal(cat(root, new), torch.cat((root, new), 2))


def test_another_capacity_moves_the_cache() -> None:
    cache = cat(fresh(1, 4, 2), fresh(1, 4, 2))
    new = fresh(1, 100, 2)
    assert torch.equal(cat(cache, new, capacity=200), torch.cat((cache, new), 2))


def test_continues_outside_inference_mode() -> None:
    with torch.inference_mode():
        cache = cat(fresh(1, 4, 2), fresh(1, 4, 2))
    address, kept, new = cache.data_ptr(), cache.clone(), fresh(1, 2, 2)
    grown = cat(cache, new)
    assert grown.data_ptr() == address and torch.equal(grown, torch.cat((kept, new), 2))


def test_buffers_are_freed() -> None:
    gc.collect()
    before = live_buffers()
    cache = cat(fresh(2, 5, 2), fresh(2, 3, 2))
    assert live_buffers() == before + 1
    view = cache[:1, :, 2:]
    del cache
    assert live_buffers() == before + 1, "a view keeps it"
    del view
    assert live_buffers() == before
    token = kernels.kv_acquire(fresh(2, 5, 2), CAPACITY, 2)
    assert live_buffers() == before + 1, "the token keeps it"
    del token
    assert live_buffers() == before


def test_threads_grow_one_root_apart() -> None:
    root = cat(fresh(2, 5, 2), fresh(2, 3, 2), capacity=512)
    kept = root.clone()
    wrong: list[str] = []

    def grow(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        cache, expected = root, kept
        for _ in range(60):
            new = torch.randn(2, 3, 2, 8, generator=generator)
            cache, expected = cat(cache, new, capacity=512), torch.cat((expected, new), 2)
            if not torch.equal(cache, expected):
                wrong.append(f"thread {seed}")

    threads = [threading.Thread(target=grow, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(root, kept)


def test_a_token_whose_buffer_is_gone() -> None:
    token = kernels.kv_acquire(fresh(1, 4, 2), CAPACITY, 2)
    copied = torch.tensor(token.tolist())
    del token
    with pytest.raises(KernelError, match="token: must name a buffer that is still held"):
        kernels.kv_extend(fresh(1, 1, 2), copied, 4, CAPACITY, 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, t: kernels.kv_acquire(x, 3, 2), "capacity: must be at least 4, the tokens to hold, got 3"),
        (lambda x, t: kernels.kv_acquire(x, 8, 4), "dim: must be a dimension of previous, 0 to 3, got 4"),
        (
            lambda x, t: kernels.kv_extend(x, t.int(), 4, CAPACITY, 2),
            "token: must be the token of kv_acquire, int64 [2]",
        ),
        (lambda x, t: kernels.kv_extend(x, t, 61, CAPACITY, 2), "capacity: must be at least 65"),
        (lambda x, t: kernels.kv_extend(x, t, -1, CAPACITY, 2), "length: must not be negative, got -1"),
        (lambda x, t: kernels.kv_extend(x, t, 5, CAPACITY, 2), "length: must be at most the 4 rows"),
        (lambda x, t: kernels.kv_extend(x[:, :2], t, 4, CAPACITY, 2), "new: must fit a buffer [1, 3, 64, 8]"),
        (lambda x, t: kernels.kv_extend(x.half(), t, 4, CAPACITY, 2), "new: must be torch.float32 on cpu"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    x = fresh(1, 4, 2)
    with pytest.raises(KernelError) as caught:
        call(x, kernels.kv_acquire(x, CAPACITY, 2))
    assert text in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="huge pages are asked for on Linux only")
def test_large_buffers_are_used_again_and_given_back() -> None:
    """Memory of a dropped cache serves the next one of its size; another size or a release frees it."""
    gc.collect()
    kernels.kv_release()
    assert idle_bytes() == 0
    shape = (1, 4, 10, 64)
    capacity = 1 << 14  # 16 MiB: above a huge page
    grown = cat(torch.ones(shape), torch.ones(shape), capacity=capacity)
    assert grown.shape[2] == 20 and bool((grown == 1).all())
    address = grown.data_ptr()
    del grown
    gc.collect()
    assert idle_bytes() == 4 * capacity * 64 * 4
    again = cat(torch.zeros(shape), torch.zeros(shape), capacity=capacity)
    assert again.data_ptr() == address and idle_bytes() == 0 and not again.any()
    second = cat(torch.ones(shape), torch.ones(shape), capacity=capacity)
    assert second.data_ptr() != address and not again.any()
    del second
    gc.collect()
    assert idle_bytes() > 0
    other = cat(torch.ones(shape), torch.ones(shape), capacity=2 * capacity)
    assert idle_bytes() == 0 and not again.any()
    del other
    gc.collect()
    kernels.kv_release()
    assert idle_bytes() == 0 and not again.any()
