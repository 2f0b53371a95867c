"""`attention_stats` on Triton: FlashAttention's forward with log-sum-exp and entropy streamed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar.kernels.common.blocks import LOG2E, Block, block_dim, block_queries, interpreted, operand
from sparvar.kernels.common.checks import attention_output
from sparvar.kernels.common.device_code import NATS, add_weighted, head_pointer, load_rows, softmax_step
from sparvar.kernels.common.launch import launch


@triton.jit
def attention_stats_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, entropy_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    queries, keys, scale,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ENTROPY: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One program per BM queries. Peak, total and energy are in bits: scores arrive times log2(e)."""
    scale = tl.full((), scale, tl.float32)  # Inductor passes Python's numbers as float64
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = token < queries
    row = tl.minimum(token, queries - 1)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM
    q_base = head_pointer(q_ptr, batch, head, q_batch, q_head)
    k_base = head_pointer(k_ptr, batch, head, k_batch, k_head)
    v_base = head_pointer(v_ptr, batch, head, v_batch, v_head)
    q = load_rows(q_base, row, q_token, DIM, BLOCK_D)  # [BM, BD]
    if WIDEN:
        q = q.to(tl.float32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    energy = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, keys, BLOCK_N):
        # Behind the last key it is read again, with weight 0: no row needs a mask. The number is finite because the
        # entropy multiplies it by that 0.
        slot = start + tl.arange(0, BLOCK_N)
        key = tl.minimum(slot, keys - 1)
        k = load_rows(k_base, key, k_token, DIM, BLOCK_D)  # [BN, BD]
        v = load_rows(v_base, key, v_token, DIM, BLOCK_D)  # [BN, BD]
        if WIDEN:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BM, BN]
        score = score * scale + tl.where(slot < keys, 0.0, -3e38)[None, :]
        weight, new_peak, shrink = softmax_step(score, peak)
        if ENTROPY:
            shifted = score - new_peak[:, None]
            moved = tl.where(start == 0, 0.0, peak - new_peak)  # at first there is nothing to be moved
            energy = shrink * (energy + moved * total) + tl.sum(weight * shifted, 1)
        total = total * shrink + tl.sum(weight, 1)
        acc = add_weighted(acc * shrink[:, None], weight, v, WIDEN)
        peak = new_peak

    out_row = (batch * queries + token) * heads + head  # [B, N, H, D] in memory
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_row[:, None] * DIM + d[None, :], out, mask=exists[:, None] & inside[None, :])
    stat_row = (batch * heads + head) * queries + token
    log_total = tl.log2(total)
    tl.store(lse_ptr + stat_row, (peak + log_total) * NATS, mask=exists)
    if ENTROPY:
        bits = tl.maximum(log_total - energy / total, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(entropy_ptr + stat_row, bits * NATS, mask=exists)


KERNELS = (attention_stats_kernel,)


def pinned(dim: int, dtype: torch.dtype, hip: bool) -> Block:
    """Return the configuration that is proven to fit every supported GPU without spills (docs/design/gpu.md)."""
    wide = block_dim(dim) > 128
    if dtype == torch.float32:
        return Block(32, 16 if wide else 32, 8, 2)
    if hip:  # 64 KB of shared memory
        return Block(64, 16, 8, 2) if wide else Block(128, 32, 8, 2)
    return Block(64, 32, 8, 2) if wide else Block(128, 64, 8, 3)


def run(
    q: Tensor, k: Tensor, v: Tensor, scale: float, block: Block | None = None, entropy: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse, entropy. Sums in fp32; weights are rounded to the dtype before they meet v.

    Without `entropy` the third tensor is not written: what streaming it costs is timed against that.
    """
    batch, heads, queries, dim = q.shape
    out = attention_output(q)
    lse = q.new_empty((batch, heads, queries), dtype=torch.float32)
    spread = torch.empty_like(lse)
    q, *q_strides = operand(q)
    k, *k_strides = operand(k)
    v, *v_strides = operand(v)
    block = block or pinned(dim, q.dtype, torch.version.hip is not None)
    block_m = block_queries(block.m, queries)
    launch(
        attention_stats_kernel,
        (triton.cdiv(queries, block_m), heads, batch),
        q,
        k,
        v,
        out,
        lse,
        spread,
        *q_strides,
        *k_strides,
        *v_strides,
        queries,
        k.shape[2],
        scale * LOG2E,
        DIM=dim,
        BLOCK_D=block_dim(dim),
        BLOCK_M=block_m,
        BLOCK_N=block.n,
        ENTROPY=entropy,
        WIDEN=interpreted(attention_stats_kernel) and q.dtype == torch.bfloat16,
        num_warps=block.warps,
        num_stages=block.stages,
    )
    return out, lse, spread
