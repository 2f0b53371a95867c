"""`column_sums` on Triton: the second pass of the exact form, a query tile against a span of keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar.kernels.common.blocks import LOG2E, Block, block_dim, block_queries, interpreted, operand, sm_90
from sparvar.kernels.common.device_code import BITS, head_pointer, load_rows
from sparvar.kernels.common.geometry import QueryTiles, axis_tiles
from sparvar.kernels.common.launch import launch

SPAN = 1024  # keys of one program: queries are loaded once for all of them
SPAN_SM_90 = 2048


@triton.jit
def sampled_queries(
    q_base, lse_base, q_token, y0, x0, part, grid_h, grid_w,
    ACROSS: tl.constexpr, SAMPLED: tl.constexpr, STRIDE: tl.constexpr,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Return queries [BM, BD] and their LSE in bits [BM] for a part of a tile; infinite where there is no query."""
    slot = part * BLOCK_M + tl.arange(0, BLOCK_M)
    y = y0 + slot // ACROSS * STRIDE
    x = x0 + slot % ACROSS * STRIDE
    exists = (slot < SAMPLED) & (y < grid_h) & (x < grid_w)
    token = tl.where(exists, y * grid_w + x, 0)
    q = load_rows(q_base, token, q_token, DIM, BLOCK_D)
    if WIDEN:
        q = q.to(tl.float32)
    return q, tl.load(lse_base + token, mask=exists, other=float("inf")) * BITS


@triton.jit
def column_sums_kernel(
    q_ptr, k_ptr, lse_ptr, sums_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    keys, grid_h, grid_w, scale,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, STRIDE: tl.constexpr,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """BN keys a step against the queries of a tile. Scores are transposed: their sum then stays within a warp."""
    scale = tl.full((), scale, tl.float32)  # Inductor passes Python's numbers as float64
    across: tl.constexpr = (TILE_W + STRIDE - 1) // STRIDE
    sampled: tl.constexpr = (TILE_H + STRIDE - 1) // STRIDE * across
    parts: tl.constexpr = (sampled + BLOCK_M - 1) // BLOCK_M
    spans = tl.cdiv(keys, SPAN)
    tile = tl.program_id(0) // spans
    first = tl.program_id(0) % spans * SPAN
    tiles = tl.num_programs(0) // spans
    row_of_head = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    y0 = tile // tl.cdiv(grid_w, TILE_W) * TILE_H
    x0 = tile % tl.cdiv(grid_w, TILE_W) * TILE_W
    height = tl.minimum(TILE_H, grid_h - y0)
    width = tl.minimum(TILE_W, grid_w - x0)
    stands_for = (height * width).to(tl.float32) / (tl.cdiv(height, STRIDE) * tl.cdiv(width, STRIDE)).to(tl.float32)

    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    q_base = head_pointer(q_ptr, batch, head, q_batch, q_head)
    k_base = head_pointer(k_ptr, batch, head, k_batch, k_head)
    lse_base = lse_ptr + row_of_head * (grid_h * grid_w)
    sums_base = sums_ptr + (row_of_head * tiles + tile) * keys
    if parts == 1:
        q, lse = sampled_queries(
            q_base, lse_base, q_token, y0, x0, 0, grid_h, grid_w, across, sampled, STRIDE, DIM, BLOCK_D, BLOCK_M, WIDEN
        )
    for start in tl.range(first, tl.minimum(first + SPAN, keys), BLOCK_N):
        slot = start + tl.arange(0, BLOCK_N)
        row = tl.minimum(slot, keys - 1)
        k = load_rows(k_base, row, k_token, DIM, BLOCK_D)  # [BN, BD]
        if WIDEN:
            k = k.to(tl.float32)
        if parts == 1:
            score = tl.dot(k, tl.trans(q), input_precision="ieee")  # [BN, BM]
            sums = tl.sum(tl.exp2(score * scale - lse[None, :]), 1)
        else:
            sums = tl.zeros([BLOCK_N], tl.float32)
            for part in range(parts):
                q_part, lse_part = sampled_queries(
                    q_base, lse_base, q_token, y0, x0, part, grid_h, grid_w,
                    across, sampled, STRIDE, DIM, BLOCK_D, BLOCK_M, WIDEN,
                )  # fmt: skip
                score = tl.dot(k, tl.trans(q_part), input_precision="ieee")
                sums += tl.sum(tl.exp2(score * scale - lse_part[None, :]), 1)
        tl.store(sums_base + slot, sums * stands_for, mask=slot < keys)


KERNELS = (column_sums_kernel,)


def pinned(dim: int, dtype: torch.dtype, hip: bool, hopper: bool = False) -> Block:
    """Return the configuration that is proven to fit every supported GPU without spills (docs/design/gpu.md).

    `hopper`: the one that was fastest on an H100.
    """
    wide = block_dim(dim) > 128
    if dtype == torch.float32:
        return Block(16 if hip else 32, 16 if hip and wide else 32, 8, 2)
    if hip:  # 64 KB of shared memory
        return Block(128, 64, 8, 2)
    if hopper and not wide:
        return Block(128, 64, 4, 3)
    return Block(64, 64, 8, 2) if wide else Block(128, 64, 8, 3)


def run(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    scale: float,
    tiles: QueryTiles,
    stride: int,
    block: Block | None = None,
    span: int = 0,
) -> Tensor:
    """Return [B, H, G, T] fp32. Sums in fp32. `block` and `span` replace the pinned ones."""
    batch, heads, _, dim = q.shape
    keys, (tile_h, tile_w) = k.shape[2], tiles.tile
    sums = q.new_empty((batch, heads, tiles.number, keys), dtype=torch.float32)
    q, *q_strides = operand(q)
    k, *k_strides = operand(k)
    hopper = sm_90(q.device)
    block = block or pinned(dim, q.dtype, torch.version.hip is not None, hopper)
    span = span or (SPAN_SM_90 if hopper else SPAN)
    launch(
        column_sums_kernel,
        (tiles.number * triton.cdiv(keys, span), heads, batch),
        q,
        k,
        lse.float().contiguous(),
        sums,
        *q_strides,
        *k_strides,
        keys,
        *tiles.grid,
        scale * LOG2E,
        TILE_H=tile_h,
        TILE_W=tile_w,
        STRIDE=stride,
        DIM=dim,
        BLOCK_D=block_dim(dim),
        BLOCK_M=block_queries(block.m, axis_tiles(tile_h, stride) * axis_tiles(tile_w, stride)),
        BLOCK_N=block.n,
        SPAN=span,
        WIDEN=interpreted(column_sums_kernel) and q.dtype == torch.bfloat16,
        num_warps=block.warps,
        num_stages=block.stages,
    )
    return sums
