"""`select_columns` in Triton: one program per row, bisection over the bits of the threshold, then compaction.

Each bisection step is a comparison and an addition per key, on keys that stay in registers: at most 32 steps, and
as soon as exactly `kept` keys reach the threshold no more. A radix search with `tl.histogram` needs only 4 passes,
but Triton counts 256 bins with ballots and popcounts, some 80 instructions a key and pass where a step here has 2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparvar.kernels.common.launch import launch

# Keys a thread holds: 16 of a row that fits, 8 of a block where rows are read again at every step (its counters take
# as many registers), 4 in the compaction. With twice as many, some targets spill.
RESIDENT_COLUMNS = 8192
RESIDENT_KEYS_PER_WARP = 512
REST_KEYS = 24  # most a thread holds where a row is a large and a small block
STREAM_BLOCK, STREAM_WARPS = 4096, 16
CHUNK_PER_WARP = 128


@triton.jit
def _keys(x: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Monotone map of fp32 to uint32: -0 equals +0, any NaN is the largest; 0, below all, where not `inside`.

    It takes values and loads nothing: torch takes a pointer given to a function whose result decides where a kernel
    stores for one that is stored to, and would copy the sums.
    """
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    key = tl.where(bits != magnitude, 0x80000000 - magnitude, 0x80000000 + magnitude)
    return tl.where(inside, tl.where(magnitude > 0x7F800000, 0xFFFFFFFF, key), 0)


# Rows are read key by key, whatever their length: with four keys a thread the two blocks would not meet in one layout.
@triton.jit(do_not_specialize=["columns"])
def select_kernel(
    sums: tl.tensor,
    indices: tl.tensor,
    counts: tl.tensor,
    columns: tl.tensor,
    kept: tl.tensor,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    REST: tl.constexpr = 0,
) -> None:
    """Write the top `kept` of fp32 [columns] of one row, ascending. RESIDENT: the row fits into BLOCK + REST keys.

    REST is 0, or the number of keys behind BLOCK, a smaller power of two, at least 32 for each warp.
    """
    row = tl.program_id(0).to(tl.int64)
    source = sums + row * columns
    target = indices + row * kept
    lane = tl.arange(0, BLOCK)
    keys = _keys(tl.load(source + lane, mask=lane < columns, other=0.0), lane < columns)  # [BLOCK]
    if REST:
        behind = BLOCK + tl.arange(0, REST)
        rest = _keys(tl.load(source + behind, mask=behind < columns, other=0.0), behind < columns)  # [REST]

    # The largest threshold that at least `kept` keys reach, from the highest bit down.
    threshold = tl.full((), 0, tl.uint32)
    step = tl.full((), 0x80000000, tl.uint32)
    reach = tl.full((), 0, tl.int32) + columns
    above = tl.full((), 0, tl.int32)
    while (step != 0) & (reach != kept):
        candidate = threshold | step
        hits = (keys >= candidate).to(tl.int32)  # [BLOCK]
        if not RESIDENT:
            for start in range(BLOCK, columns, BLOCK):
                inside = start + lane < columns
                more = _keys(tl.load(source + start + lane, mask=inside, other=0.0), inside)
                hits += (more >= candidate).to(tl.int32)
        if REST:  # columns of the block lie in one thread, so one sum over threads serves both
            hits = tl.sum(tl.reshape(hits, [BLOCK // REST, REST]), axis=0) + (rest >= candidate).to(tl.int32)
        count = tl.sum(hits, axis=0)
        enough = count >= kept
        threshold = tl.where(enough, candidate, threshold)
        reach = tl.where(enough, count, reach)
        above = tl.where(enough, above, count)
        step = step >> 1

    # A threshold found bit by bit to the end is one below the last that too few keys reached, so `above` counts the
    # keys beyond it and the first `ties` of those at it are taken. If the search stopped early all of them are, and
    # there are no more than `ties`.
    ties = kept - above
    greater_before = tl.full((), 0, tl.int32)
    equal_before = tl.full((), 0, tl.int32)
    part = tl.arange(0, CHUNK)
    for start in range(0, columns, CHUNK):
        column = start + part
        inside = column < columns
        again = _keys(tl.load(source + column, mask=inside, other=0.0), inside)  # [CHUNK], whole rows would spill here
        greater = again > threshold
        equal = again == threshold
        pair = greater.to(tl.int32) + (equal.to(tl.int32) << 16)  # one scan for both: CHUNK is below 2 ** 15
        before = tl.cumsum(pair, axis=0) - pair
        rank = equal_before + (before >> 16)
        place = greater_before + (before & 0xFFFF) + tl.minimum(rank, ties)
        taken = (greater | (equal & (rank < ties))) & inside
        tl.store(target + place, column, mask=taken)
        total = tl.sum(pair, axis=0)
        greater_before += total & 0xFFFF
        equal_before += total >> 16
    tl.store(counts + row, kept)


KERNELS = (select_kernel,)


def configuration(columns: int) -> tuple[dict[str, Any], int]:
    """Return the constants of the kernel and the number of warps for rows of T = `columns`."""
    if columns > RESIDENT_COLUMNS:
        constants = {"RESIDENT": False, "BLOCK": STREAM_BLOCK, "CHUNK": STREAM_WARPS * CHUNK_PER_WARP, "REST": 0}
        return constants, STREAM_WARPS
    block = max(triton.next_power_of_2(columns), CHUNK_PER_WARP)
    warps = max(block // RESIDENT_KEYS_PER_WARP, 1)
    rest = 0
    if warps > 1:  # half the block and warps, where what is left over fits into a smaller block
        least = 32 * (warps // 2)
        behind = max(triton.next_power_of_2(columns - block // 2), least)
        if block // 2 + behind <= REST_KEYS * least:
            block, warps, rest = block // 2, warps // 2, behind
    return {"RESIDENT": True, "BLOCK": block, "CHUNK": warps * CHUNK_PER_WARP, "REST": rest}, warps


def run(sums: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return indices int32 [B, H, G, kept] and counts int32 [B, H, G]."""
    sums = sums.contiguous()
    columns = sums.shape[3]
    indices = sums.new_empty((*sums.shape[:3], kept), dtype=torch.int32)
    counts = sums.new_empty(sums.shape[:3], dtype=torch.int32)
    if rows := counts.numel():
        constants, warps = configuration(columns)
        launch(select_kernel, (rows,), sums, indices, counts, columns, kept, **constants, num_warps=warps)
    return indices, counts


def aot_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], int, int, str]]:
    """Return (kernel, signature, constexprs, num_warps, num_stages, name) of what `run` compiles, for any GPU."""
    signature = {"sums": "*fp32", "indices": "*i32", "counts": "*i32", "columns": "i32", "kept": "i32"}
    cases = []
    for columns in (100, 2521, 4121, 6425, 40000):
        constants, warps = configuration(columns)
        types = signature | dict.fromkeys(constants, "constexpr")
        cases.append((select_kernel, types, constants, warps, 3, f"select_columns T={columns}"))
    return cases
