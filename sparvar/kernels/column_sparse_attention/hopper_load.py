"""The loading half of the kernel for sm_90: which item is where, the check of its list, and the gathering warps."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: RUF059  (Gluon has neither objects nor enumerate: what belongs together is passed as a tuple)

from __future__ import annotations

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, mbarrier


@gluon.jit
def tile_of(item, tiles):
    """Return the tile of an item. Turned by one from head to head: a program then meets edges as often as any other."""
    return (item + item // tiles) % tiles


@gluon.jit
def place(item, tiles, heads, across, grid_w, TILE_H: gl.constexpr, TILE_W: gl.constexpr):
    """Return batch row, head, tile and the first row and column of that tile."""
    tile = tile_of(item, tiles)
    head = item // tiles % heads
    batch = item // tiles // heads
    return batch.to(gl.int64), head.to(gl.int64), tile, tile // across * TILE_H, tile % across * TILE_W


@gluon.jit
def tokens(part, y0, x0, grid_h, grid_w, TILE_H: gl.constexpr, TILE_W: gl.constexpr, layout: gl.constexpr):
    """Return the tokens [64] of one half of a tile and which exist; others are token 0."""
    slot = part * 64 + gl.arange(0, 64, layout=layout)
    y = y0 + slot // TILE_W
    x = x0 + slot % TILE_W
    exists = (slot < TILE_H * TILE_W) & (y < grid_h) & (x < grid_w)
    return gl.where(exists, y * grid_w + x, 0), exists


@gluon.jit
def count_of(counts_ptr, item, items, tiles, heads, capacity, counts_batch, counts_head, counts_tile):
    """Return the number of columns of an item, at least one."""
    item = gl.minimum(item, items - 1)
    tile = tile_of(item, tiles).to(gl.int64)
    head = (item // tiles % heads).to(gl.int64)
    batch = (item // tiles // heads).to(gl.int64)
    count = gl.load(counts_ptr + batch * counts_batch + head * counts_head + tile * counts_tile)
    return gl.minimum(gl.maximum(count, 1), capacity)


@gluon.jit
def check(good_ptr, counts_ptr, columns, item, tiles, heads, capacity, keys, lists):
    """Store 0 to good[0] if the list of an item is bad, as `check_lists_kernel` does."""
    indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile = lists
    tile = tile_of(item, tiles).to(gl.int64)
    head = (item // tiles % heads).to(gl.int64)
    batch = (item // tiles // heads).to(gl.int64)
    count = gl.load(counts_ptr + batch * counts_batch + head * counts_head + tile * counts_tile)
    gl.store(good_ptr, 0, mask=(count < 1) | (count > capacity))
    used = gl.minimum(count, capacity)
    lane = gl.arange(0, 512, layout=gl.BlockedLayout([1], [32], [4], [0]))
    for start in range(0, used, 512):
        slot = start + lane
        here = gl.load(columns + slot, mask=slot < used, other=0)
        before = gl.load(columns + slot - 1, mask=(slot > 0) & (slot < used), other=-1)
        bad = (slot < used) & ((here <= before) | (here >= keys))
        gl.store(good_ptr + slot * 0, gl.zeros_like(slot), mask=bad)


@gluon.jit
def load_queries(
    q_s, q_full, q_base, q_token, y0, x0, grid_h, grid_w, d,
    rows: gl.constexpr, TILE_H: gl.constexpr, TILE_W: gl.constexpr,
):  # fmt: skip
    """Copy both halves of a tile's queries to shared memory and tell `q_full`."""
    for part in gl.static_range(2):
        token, _ = tokens(part, y0, x0, grid_h, grid_w, TILE_H, TILE_W, rows)
        async_copy.async_copy_global_to_shared(q_s.index(part), q_base + (token[:, None] * (q_token * 8) + d))
    async_copy.mbarrier_arrive(q_full, increment_count=False)


@gluon.jit
def produce(
    shared, barriers, pointers, q_strides, k_strides, v_strides, lists, sizes,
    TILE_H: gl.constexpr, TILE_W: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
    CHECK: gl.constexpr,
):  # fmt: skip
    """Gather queries, keys and values of one item after another into shared memory."""
    q_s, k_s, v_s = shared
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    q_ptr, k_ptr, v_ptr, indices_ptr, counts_ptr, good_ptr = pointers
    indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile = lists
    items, tiles, heads, across, keys, capacity, grid_h, grid_w = sizes
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    d = gl.arange(0, DIM, layout=gl.SliceLayout(0, layout))[None, :]
    slot = gl.arange(0, BLOCK_N, layout=rows)
    turn = 0
    it = 0
    begin = gl.program_id(0)
    count = count_of(counts_ptr, begin, items, tiles, heads, capacity, counts_batch, counts_head, counts_tile)
    for item in range(begin, items, gl.num_programs(0)):
        batch, head, tile, y0, x0 = place(item, tiles, heads, across, grid_w, TILE_H, TILE_W)
        columns = indices_ptr + batch * indices_batch + head * indices_head + tile.to(gl.int64) * indices_tile
        column = gl.load(columns + gl.minimum(slot, count - 1))
        if CHECK:
            seen = ((indices_head == 0) & (counts_head == 0) & (head > 0)) | (
                (indices_batch == 0) & (counts_batch == 0) & (batch > 0)
            )
            if not seen:  # lists that heads or batch rows share are checked once
                check(good_ptr, counts_ptr, columns, item, tiles, heads, capacity, keys, lists)
        q_base = q_ptr + (batch * q_strides[0] + head * q_strides[1]) * 8
        k_base = k_ptr + (batch * k_strides[0] + head * k_strides[1]) * 8
        v_base = v_ptr + (batch * v_strides[0] + head * v_strides[1]) * 8
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        load_queries(q_s, q_full, q_base, q_strides[2], y0, x0, grid_h, grid_w, d, rows, TILE_H, TILE_W)
        then = item + gl.num_programs(0)
        following = count_of(counts_ptr, then, items, tiles, heads, capacity, counts_batch, counts_head, counts_tile)
        for start in range(0, count, BLOCK_N):
            here = gl.minimum(gl.maximum(column, 0), keys - 1)  # a bad list must not read outside
            column = gl.load(columns + gl.minimum(start + BLOCK_N + slot, count - 1))
            stage = it % STAGES
            phase = (it // STAGES & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), phase)
            async_copy.async_copy_global_to_shared(k_s.index(stage), k_base + (here[:, None] * (k_strides[2] * 8) + d))
            async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
            mbarrier.wait(v_empty.index(stage), phase)
            async_copy.async_copy_global_to_shared(v_s.index(stage), v_base + (here[:, None] * (v_strides[2] * 8) + d))
            async_copy.mbarrier_arrive(v_full.index(stage), increment_count=False)
            it += 1
        count = following
        turn += 1
    # Consumers start the item behind their last one before they end that: it is the last item again, and not used.
    item = items - 1
    batch, head, tile, y0, x0 = place(item, tiles, heads, across, grid_w, TILE_H, TILE_W)
    q_base = q_ptr + (batch * q_strides[0] + head * q_strides[1]) * 8
    k_base = k_ptr + (batch * k_strides[0] + head * k_strides[1]) * 8
    mbarrier.wait(q_empty, (turn & 1) ^ 1)
    load_queries(q_s, q_full, q_base, q_strides[2], y0, x0, grid_h, grid_w, d, rows, TILE_H, TILE_W)
    stage = it % STAGES
    mbarrier.wait(k_empty.index(stage), (it // STAGES & 1) ^ 1)
    key = gl.minimum(slot, keys - 1)
    async_copy.async_copy_global_to_shared(k_s.index(stage), k_base + (key[:, None] * (k_strides[2] * 8) + d))
    async_copy.mbarrier_arrive(k_full.index(stage), increment_count=False)
