"""`column_sparse_attention` on Triton: one program per query tile (or 128 queries of it), head and batch row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar import env
from sparvar.kernels.column_sparse_attention.gpu_lists import assert_good, check_lists, check_lists_kernel, flag
from sparvar.kernels.column_sparse_attention.operands import operands
from sparvar.kernels.common.blocks import LOG2E, Block, block_dim, block_queries, interpreted, sm_90
from sparvar.kernels.common.checks import attention_output
from sparvar.kernels.common.columns import Columns
from sparvar.kernels.common.device_code import add_weighted, head_pointer, load_rows, softmax_step, tile_rows
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.common.launch import launch
from sparvar.kernels.common.library import launchable
from sparvar.kernels.common.torch_compat import GLUON_VERSIONS


@triton.jit
def column_sparse_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, extra_ptr, indices_ptr, counts_ptr,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    extra_batch, extra_head, extra_token,
    indices_batch, indices_head, indices_tile, counts_batch, counts_head, counts_tile,
    keys, capacity, grid_h, grid_w, scale,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RUNS: tl.constexpr, EXTRA: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Streamed softmax over the columns of one list. BM queries of a tile, BN columns a step, BD >= head dim."""
    scale = tl.full((), scale, tl.float32)  # Inductor passes Python's numbers as float64
    parts: tl.constexpr = (TILE_H * TILE_W + BLOCK_M - 1) // BLOCK_M
    tile = tl.program_id(0) // parts
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    token, exists = tile_rows(tile, tl.program_id(0) % parts, grid_h, grid_w, TILE_H, TILE_W, BLOCK_M)
    slot = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = d < DIM

    q_base = head_pointer(q_ptr, batch, head, q_batch, q_head)
    k_base = head_pointer(k_ptr, batch, head, k_batch, k_head)
    v_base = head_pointer(v_ptr, batch, head, v_batch, v_head)
    columns = indices_ptr + batch * indices_batch + head * indices_head + tile.to(tl.int64) * indices_tile
    count = tl.load(counts_ptr + batch * counts_batch + head * counts_head + tile.to(tl.int64) * counts_tile)
    count = tl.minimum(tl.maximum(count, 1), capacity)
    q = load_rows(q_base, token, q_token, DIM, BLOCK_D)  # [BM, BD]
    if WIDEN:
        q = q.to(tl.float32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, count, BLOCK_N):
        # Behind the list's end its last column is read again and then masked: rows need no mask, and a NaN in a row
        # that the tile does not keep cannot get in.
        column = tl.load(columns + tl.minimum(start + slot, count - 1))
        column = tl.minimum(tl.maximum(column, 0), keys - 1)  # a bad list must not read outside
        if RUNS:
            first = tl.load(columns + start)
            last = tl.load(columns + tl.minimum(start + BLOCK_N, count) - 1)
            if (last - first == BLOCK_N - 1) & (first >= 0) & (last < keys):
                k = load_rows(k_base + first * (k_token * 8), slot, k_token, DIM, BLOCK_D)
                v = load_rows(v_base + first * (v_token * 8), slot, v_token, DIM, BLOCK_D)
            else:
                k = load_rows(k_base, column, k_token, DIM, BLOCK_D)
                v = load_rows(v_base, column, v_token, DIM, BLOCK_D)
        else:
            k = load_rows(k_base, column, k_token, DIM, BLOCK_D)  # [BN, BD]
            v = load_rows(v_base, column, v_token, DIM, BLOCK_D)  # [BN, BD]
        if WIDEN:
            k = k.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")  # [BM, BN]
        score = score * scale + tl.where(start + slot < count, 0.0, float("-inf"))[None, :]
        weight, peak, shrink = softmax_step(score, peak)
        total = total * shrink + tl.sum(weight, 1)
        acc = add_weighted(acc * shrink[:, None], weight, v, WIDEN)

    out = acc / total[:, None]
    kept = exists[:, None] & inside[None, :]
    if EXTRA:
        extra_base = head_pointer(extra_ptr, batch, head, extra_batch, extra_head)
        out += tl.load(extra_base + token[:, None] * (extra_token * 8) + d[None, :], mask=kept, other=0.0).to(
            tl.float32
        )
    out_row = (batch * (grid_h * grid_w) + token) * heads + head  # [B, N, H, D] in memory
    tl.store(out_ptr + out_row[:, None] * DIM + d[None, :], out.to(out_ptr.dtype.element_ty), mask=kept)


KERNELS = (column_sparse_kernel, check_lists_kernel)


class Choice(NamedTuple):
    """A configuration of `column_sparse_kernel`; `runs`: steps of contiguous keys are loaded as such."""

    block: Block | None = None
    runs: bool = False


CHOSEN = Choice()


def pinned(dim: int, dtype: torch.dtype, hip: bool, runs: bool = False) -> Block:
    """Return the configuration that is proven to fit every supported GPU without spills (docs/design/gpu.md).

    With `runs` both ways of loading are in the loop and want registers: its steps are half as long.
    """
    wide = block_dim(dim) > 128
    if dtype == torch.float32:
        return Block(32, 16 if wide or runs else 32, 8, 1 if runs else 2)
    if hip:  # 64 KB of shared memory
        return Block(64, 16, 8, 2) if wide else Block(128, 32, 8, 2)
    if wide:
        return Block(64, 16 if runs else 32, 8, 2)
    return Block(128, 32, 8, 2) if runs else Block(128, 64, 8, 3)


def candidates(dim: int, dtype: torch.dtype, shared: bool) -> list[triton.Config]:
    """Return what SPARVAR_GPU_TUNE=search times. `shared`: one list serves all heads, as those of CSLA do.

    Larger steps mean fewer barriers, smaller ones less waste at the end of a list. Two more stages mean rows one step
    further ahead (one more means nothing, as indices take every second one) and shared memory. Four warps let two
    programs share a multiprocessor; they and steps of 128 spill above a head dimension of 64. Contiguous steps are
    worth a look only in lists of windows.
    """
    hip = torch.version.hip is not None
    base = pinned(dim, dtype, hip)
    blocks = {base, base._replace(stages=base.stages + 2), base._replace(n=base.n // 2, stages=base.stages + 2)}
    if dtype != torch.float32 and block_dim(dim) <= 64 and not hip:
        blocks |= {base._replace(n=128, stages=2), base._replace(warps=4)}
    choices = [(block, False) for block in sorted(blocks)] + (
        [(pinned(dim, dtype, hip, runs=True), True)] if shared else []
    )
    return [
        triton.Config({"BLOCK_N": block.n, "RUNS": runs}, num_warps=block.warps, num_stages=block.stages)
        for block, runs in choices
    ]


def _on_hopper(q: Tensor, scale: float, queries: int) -> bool:
    """Return whether `hopper` serves a call: two warpgroups of 64 queries, 16-bit types, common head dimensions."""
    if q.shape[3] not in (64, 128) or q.dtype not in (torch.bfloat16, torch.float16) or not 64 < queries <= 128:
        return False
    if scale <= 0 or q.device.type != "cuda" or launchable(column_sparse_kernel, q) is not column_sparse_kernel:
        return False  # what is traced is compiled by Inductor, which knows no Gluon
    return triton.__version__.split(".")[:2] in GLUON_VERSIONS and sm_90(q.device)


@lru_cache(maxsize=64)
def _searched(dim: int, dtype: torch.dtype, shared: bool, bucket: int) -> Any:
    """Return the kernel with its search, one for every power of two of columns."""
    return triton.autotune(candidates(dim, dtype, shared), key=[])(column_sparse_kernel)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    columns: Columns,
    scale: float,
    tiles: QueryTiles,
    correction: Tensor | None,
    choice: Choice = CHOSEN,
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q. Sums in fp32; weights are rounded to the dtype before they meet v.

    `choice` replaces what SPARVAR_GPU_TUNE would choose.
    """
    block, runs = choice
    batch, heads, _, dim = q.shape
    queries = tiles.tile[0] * tiles.tile[1]
    out = attention_output(q)
    if block is None and not runs and env.gpu_tune() == "pinned" and _on_hopper(q, scale, queries):
        from sparvar.kernels.column_sparse_attention import hopper

        good = flag(q.device) if env.gpu_checks() else None
        hopper.run((q, k, v), out, columns, good, scale, tiles, correction)
        if good is not None:
            assert_good(good)
        return out
    if env.gpu_checks():
        check_lists(columns, k.shape[2])
    tensors, strides = operands((q, k, v), out, columns, correction)
    capacity = columns.indices.shape[3]
    search = block is None and env.gpu_tune() == "search" and not interpreted(column_sparse_kernel)
    block = block or pinned(dim, q.dtype, torch.version.hip is not None, runs)
    block_m = block_queries(block.m, queries)
    kernel: Any = column_sparse_kernel
    options: dict[str, Any] = {"BLOCK_N": block.n, "RUNS": runs, "num_warps": block.warps, "num_stages": block.stages}
    if search:
        shared = columns.indices.shape[1] == 1 and heads > 1
        kernel, options = _searched(dim, q.dtype, shared, triton.next_power_of_2(capacity)), {}
    launch(
        kernel,
        (tiles.number * triton.cdiv(queries, block_m), heads, batch),
        *tensors,
        *strides,
        k.shape[2],
        capacity,
        *tiles.grid,
        scale * LOG2E,
        TILE_H=tiles.tile[0],
        TILE_W=tiles.tile[1],
        DIM=dim,
        BLOCK_D=block_dim(dim),
        BLOCK_M=block_m,
        EXTRA=correction is not None,
        WIDEN=interpreted(column_sparse_kernel) and q.dtype == torch.bfloat16,
        **options,
    )
    return out
