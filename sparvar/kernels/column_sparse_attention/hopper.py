"""`column_sparse_attention` for sm_90 in Gluon: warps that gather, and two warpgroups that multiply."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# ruff: noqa: RUF059, SIM113  (Gluon has neither objects nor enumerate: what belongs together is passed as a tuple)

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from sparvar.kernels.column_sparse_attention.hopper_load import count_of, place, produce, tokens
from sparvar.kernels.column_sparse_attention.operands import operands
from sparvar.kernels.common.blocks import LOG2E
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.common.torch_compat import gluon_barrier

BLOCK_N, STAGES = 64, 5

_barrier = gluon_barrier()


@gluon.jit
def _softmax_step(score, peak, total, scale):
    """One step of streamed softmax: weights, and the new peak (in bits), total and shrinking factor."""
    new_peak = gl.maximum(peak, gl.max(score, 1) * scale)
    weight = gl.exp2(score * scale - new_peak[:, None])
    shrink = gl.exp2(peak - new_peak)
    return weight, new_peak, total * shrink + gl.sum(weight, 1), shrink


@gluon.jit
def _step(
    q, p, acc, peak, total, k_s, v_s, blank, barriers, it, left, slot, scale,
    p_layout: gl.constexpr, outs: gl.constexpr, STAGES: gl.constexpr, MASK: gl.constexpr,
):  # fmt: skip
    """Scores of step `it` + 1 and weights of step `it` times V, one behind the other; softmax while V is multiplied."""
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    after = it + 1
    after_stage = after % STAGES
    stage = it % STAGES
    mbarrier.wait(v_full.index(stage), it // STAGES & 1)
    mbarrier.wait(k_full.index(after_stage), after // STAGES & 1)
    fence_async_shared()
    coming = warpgroup_mma(q, k_s.index(after_stage).permute((1, 0)), blank, use_acc=False, is_async=True)
    product = warpgroup_mma(p, v_s.index(stage), acc, is_async=True)
    score = warpgroup_mma_wait(1, deps=(coming,))
    if MASK:
        score = gl.where((slot < left)[None, :], score, float("-inf"))
    weight, peak, total, shrink = _softmax_step(score, peak, total, scale)
    acc = warpgroup_mma_wait(0, deps=(product,))
    _barrier()
    mbarrier.arrive(k_empty.index(after_stage), count=1)
    mbarrier.arrive(v_empty.index(stage), count=1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, outs))[:, None]
    return gl.convert_layout(weight.to(k_s.dtype), p_layout), acc, peak, total


@gluon.jit
def _consume(
    shared, barriers, pointers, extra_strides,
    lists, sizes, scale, part: gl.constexpr,
    TILE_H: gl.constexpr, TILE_W: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, DIM: gl.constexpr,
    EXTRA: gl.constexpr,
):  # fmt: skip
    """Attend with one half of the queries of one item after another."""
    q_s, k_s, v_s = shared
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    out_ptr, extra_ptr, counts_ptr = pointers
    indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile = lists
    items, tiles, heads, across, keys, capacity, grid_h, grid_w = sizes
    kind: gl.constexpr = k_s.dtype
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    outs: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, outs, 2)
    per_row: gl.constexpr = gl.SliceLayout(1, scores)
    store: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    slot = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores))
    d = gl.arange(0, DIM, layout=gl.SliceLayout(0, store))[None, :]
    blank = gl.zeros([64, BLOCK_N], gl.float32, layout=scores)
    turn = 0
    it = 0
    begin = gl.program_id(0)
    count = count_of(counts_ptr, begin, items, tiles, heads, capacity, counts_batch, counts_head, counts_tile)
    mbarrier.wait(q_full, 0)
    q = q_s.index(part).load(q_layout)
    mbarrier.wait(k_full.index(0), 0)
    fence_async_shared()
    score = warpgroup_mma(q, k_s.index(0).permute((1, 0)), blank, use_acc=False, is_async=True)
    score = warpgroup_mma_wait(0, deps=(score,))
    _barrier()
    mbarrier.arrive(q_empty, count=1)
    mbarrier.arrive(k_empty.index(0), count=1)
    for item in range(begin, items, gl.num_programs(0)):
        batch, head, tile, y0, x0 = place(item, tiles, heads, across, grid_w, TILE_H, TILE_W)
        then = item + gl.num_programs(0)
        following = count_of(counts_ptr, then, items, tiles, heads, capacity, counts_batch, counts_head, counts_tile)
        peak = gl.full([64], float("-inf"), gl.float32, layout=per_row)
        total = gl.zeros([64], gl.float32, layout=per_row)
        acc = gl.zeros([64, DIM], gl.float32, layout=outs)
        score = gl.where((slot < count)[None, :], score, float("-inf"))
        weight, peak, total, shrink = _softmax_step(score, peak, total, scale)
        p = gl.convert_layout(weight.to(kind), p_layout)
        last = (count - 1) // BLOCK_N * BLOCK_N
        for _ in range(BLOCK_N, last, BLOCK_N):
            p, acc, peak, total = _step(
                q, p, acc, peak, total, k_s, v_s, blank, barriers, it, 0, slot, scale, p_layout, outs, STAGES, False
            )
            it += 1
        if last > 0:
            left = count - last
            p, acc, peak, total = _step(
                q, p, acc, peak, total, k_s, v_s, blank, barriers, it, left, slot, scale, p_layout, outs, STAGES, True
            )
            it += 1
        # The last product with V, behind it the first scores of the next item, and the end of this one meanwhile.
        stage = it % STAGES
        after = it + 1
        after_stage = after % STAGES
        turn += 1
        mbarrier.wait(v_full.index(stage), it // STAGES & 1)
        fence_async_shared()
        product = warpgroup_mma(p, v_s.index(stage), acc, is_async=True)
        mbarrier.wait(q_full, turn & 1)
        q = q_s.index(part).load(q_layout)
        mbarrier.wait(k_full.index(after_stage), after // STAGES & 1)
        fence_async_shared()
        coming = warpgroup_mma(q, k_s.index(after_stage).permute((1, 0)), blank, use_acc=False, is_async=True)
        acc = warpgroup_mma_wait(1, deps=(product,))
        _barrier()
        mbarrier.arrive(q_empty, count=1)
        mbarrier.arrive(v_empty.index(stage), count=1)
        it += 1

        out = acc * (1.0 / gl.convert_layout(total, gl.SliceLayout(1, outs)))[:, None]
        token, exists = tokens(part, y0, x0, grid_h, grid_w, TILE_H, TILE_W, gl.SliceLayout(1, store))
        if EXTRA:
            out = gl.convert_layout(out, store)
            extra_base = extra_ptr + (batch * extra_strides[0] + head * extra_strides[1]) * 8
            out += gl.load(
                extra_base + (token[:, None] * (extra_strides[2] * 8) + d), mask=exists[:, None], other=0.0
            ).to(gl.float32)
            out = out.to(kind)
        else:
            out = gl.convert_layout(out.to(kind), store)
        row = (batch * (grid_h * grid_w) + token) * heads + head  # [B, N, H, D] in memory
        gl.store(out_ptr + row[:, None] * DIM + d, out, mask=exists[:, None])
        score = warpgroup_mma_wait(0, deps=(coming,))
        _barrier()
        mbarrier.arrive(k_empty.index(after_stage), count=1)
        count = following


@gluon.jit
def column_sparse_hopper_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, extra_ptr, indices_ptr, counts_ptr, good_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    extra_batch, extra_head, extra_token,
    indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile,
    items, heads, keys, capacity, grid_h, grid_w, scale,
    TILE_H: gl.constexpr, TILE_W: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    EXTRA: gl.constexpr, CHECK: gl.constexpr,
):  # fmt: skip
    """Streamed softmax over the columns of lists, items one after another in every program."""
    kind: gl.constexpr = q_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, DIM], kind)
    step: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, DIM], kind)
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    q_s = gl.allocate_shared_memory(kind, [2, 64, DIM], layout)
    k_s = gl.allocate_shared_memory(kind, [STAGES, BLOCK_N, DIM], step)
    v_s = gl.allocate_shared_memory(kind, [STAGES, BLOCK_N, DIM], step)
    q_full = gl.allocate_shared_memory(gl.int64, [1], bar)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], bar)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    mbarrier.init(q_full, count=128)
    mbarrier.init(q_empty, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=128)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_full.index(stage), count=128)
        mbarrier.init(v_empty.index(stage), count=2)
    _barrier()

    across = gl.cdiv(grid_w, TILE_W)
    tiles = gl.cdiv(grid_h, TILE_H) * across
    shared = (q_s, k_s, v_s)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    lists = (indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile)
    sizes = (items, tiles, heads, across, keys, capacity, grid_h, grid_w)
    extra = (extra_batch, extra_head, extra_token)
    q_strides = (q_batch, q_head, q_token)
    k_strides = (k_batch, k_head, k_token)
    v_strides = (v_batch, v_head, v_token)
    consumed = (out_ptr, extra_ptr, counts_ptr)
    loaded = (q_ptr, k_ptr, v_ptr, indices_ptr, counts_ptr, good_ptr)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    shared, barriers, consumed, extra, lists, sizes, scale, gl.constexpr(0),
                    TILE_H, TILE_W, BLOCK_N, STAGES, DIM, EXTRA,
                ),
            ),
            (
                _consume,
                (
                    shared, barriers, consumed, extra, lists, sizes, scale, gl.constexpr(1),
                    TILE_H, TILE_W, BLOCK_N, STAGES, DIM, EXTRA,
                ),
            ),
            (
                produce,
                (
                    shared, barriers, loaded, q_strides, k_strides, v_strides, lists, sizes,
                    TILE_H, TILE_W, BLOCK_N, STAGES, DIM, CHECK,
                ),
            ),
        ],
        [4, 4],
        [224, 56],
    )  # fmt: skip


@lru_cache(maxsize=16)
def multiprocessors(index: int) -> int:
    """Return how many programs of a persistent kernel a device runs at once."""
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def run(
    qkv: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    columns: Columns,
    good: Tensor | None,
    scale: float,
    tiles: QueryTiles,
    correction: Tensor | None,
    steps: tuple[int, int] = (BLOCK_N, STAGES),
) -> None:
    """Fill `out` [B, H, N, D], which is [B, N, H, D] in memory, and store 0 to `good` [1] if a list is bad.

    `steps`: keys of one step, and steps in shared memory.
    """
    batch, heads, _, dim = qkv[0].shape
    items = batch * heads * tiles.number
    tensors, strides = operands(qkv, out, columns, correction)
    kernel: Any = column_sparse_hopper_kernel
    with torch.cuda.device_of(out):
        kernel[(min(items, multiprocessors(out.device.index)),)](
            *tensors,
            columns.counts if good is None else good,
            *strides,
            items,
            heads,
            qkv[1].shape[2],
            columns.indices.shape[3],
            *tiles.grid,
            scale * LOG2E,
            TILE_H=tiles.tile[0],
            TILE_W=tiles.tile[1],
            DIM=dim,
            BLOCK_N=steps[0],
            STAGES=steps[1],
            EXTRA=correction is not None,
            CHECK=good is not None,
            num_warps=4,
        )
