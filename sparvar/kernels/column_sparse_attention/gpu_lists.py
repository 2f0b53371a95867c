"""The check of column lists on the device: one pass over them and an assertion that the host does not wait for."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.launch import launch
from sparvar.kernels.common.torch_compat import assert_on_device

BLOCK = 1024
MESSAGE = "indices, counts: must be ascending lists of keys that exist without duplicates, of 1 to K columns each"


@triton.jit
def check_lists_kernel(
    indices_ptr,
    counts_ptr,
    good_ptr,
    indices_batch,
    indices_head,
    indices_tile,
    indices_column,
    counts_batch,
    counts_head,
    counts_tile,
    keys,
    capacity,
    BLOCK: tl.constexpr,
):
    """Store 0 to good[0] if one list is bad. A program per list."""
    tile = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    columns = indices_ptr + batch * indices_batch + head * indices_head + tile * indices_tile
    count = tl.load(counts_ptr + batch * counts_batch + head * counts_head + tile * counts_tile)
    wrong = ((count < 1) | (count > capacity)).to(tl.int32)
    used = tl.minimum(count, capacity)
    for start in tl.range(0, used, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        here = tl.load(columns + slot * indices_column, mask=slot < used, other=0)
        # -1 before the first makes a negative first column a descent; later ones descend if they are negative.
        before = tl.load(columns + (slot - 1) * indices_column, mask=(slot > 0) & (slot < used), other=-1)
        bad = (slot < used) & ((here <= before) | (here >= keys))
        wrong = tl.maximum(wrong, tl.max(bad.to(tl.int32), 0))
    tl.store(good_ptr, 0, mask=wrong > 0)


@lru_cache(maxsize=16)
def _kept_flag(index: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(1, dtype=torch.int32, device=f"cuda:{index}")


def flag(device: torch.device) -> Tensor:
    """Return int32 [1] on `device`, 1 until a list is found bad. Nobody sets it back: the assertion ends the process.

    One serves all calls, so that none has to fill it. What a graph captures must be filled in the graph.
    """
    if torch.cuda.is_current_stream_capturing() and not _kept_flag.cache_info().currsize:
        return torch.ones(1, dtype=torch.int32, device=device)
    return _kept_flag(torch.cuda.current_device() if device.index is None else device.index)


def assert_good(good: Tensor) -> None:
    """Assert on the device that `good` [1] is not 0; the host does not wait."""
    assert_on_device(good, MESSAGE)


def check_lists(columns: Columns, keys: int) -> None:
    """Assert on the device that `columns` are lists of `keys` keys."""
    indices, counts = columns
    batch, heads, tiles, capacity = indices.shape
    good = torch.ones(1, dtype=torch.int32, device=indices.device)
    launch(
        check_lists_kernel,
        (tiles, heads, batch),
        indices,
        counts,
        good,
        *indices.stride(),
        *counts.stride(),
        keys,
        capacity,
        BLOCK=BLOCK,
        num_warps=4,
    )
    assert_good(good)
