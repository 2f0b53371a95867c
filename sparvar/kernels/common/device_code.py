"""Steps that the Triton kernels share: where rows are, loading them, and streamed softmax. Imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from sparvar.kernels.common.blocks import LOG2E

BITS = tl.constexpr(LOG2E)  # per nat; kernels read no other kind of global
NATS = tl.constexpr(1 / LOG2E)  # per bit


@triton.jit
def tile_rows(tile, part, grid_h, grid_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the tokens [BM] of part `part` of a query tile and which of them exist; others are token 0."""
    across = tl.cdiv(grid_w, TILE_W)
    slot = part * BLOCK_M + tl.arange(0, BLOCK_M)
    y = (tile // across) * TILE_H + slot // TILE_W
    x = (tile % across) * TILE_W + slot % TILE_W
    exists = (slot < TILE_H * TILE_W) & (y < grid_h) & (x < grid_w)
    return tl.where(exists, y * grid_w + x, 0), exists


@triton.jit
def head_pointer(pointer, batch, head, batch_stride, head_stride):
    """Return where a head of an operand [B, H, L, D] begins. Strides count 8 elements, as `operand` gives them."""
    return pointer + (batch * batch_stride + head * head_stride) * 8


@triton.jit
def load_rows(base, row, token_stride, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return rows [R, BD] of one head, zeros from DIM on."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(base + row[:, None] * (token_stride * 8) + d[None, :], mask=(d < DIM)[None, :], other=0.0)


@triton.jit
def softmax_step(score, peak):
    """Return the weights [BM, BN] of scores in bits, their new peak [BM], and the factor for what was summed before."""
    new_peak = tl.maximum(peak, tl.max(score, 1))
    return tl.exp2(score - new_peak[:, None]), new_peak, tl.exp2(peak - new_peak)


@triton.jit
def add_weighted(acc, weight, v, WIDEN: tl.constexpr):
    """Return acc [BM, BD] plus weight [BM, BN] times v [BN, BD]; weights are rounded to the dtype of v."""
    weight = weight.to(v.dtype)
    if WIDEN:
        weight = weight.to(tl.float32)
        v = v.to(tl.float32)
    return tl.dot(weight, v, acc, input_precision="ieee")
