"""FLOPs, bytes, warp instructions and launches of the ops: counted from shapes and pinned blocks, nothing is compiled.

The static table holds one step of a loop (`step_arithmetic`), rooflines the sum over steps, programs and launches.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparvar.kernels.common.checks import MAX_DIM, fail
from sparvar.kernels.common.geometry import QueryTiles, axis_tiles

ELEMENTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INT32 = FP32 = 4

MATRIX_SHARE = 0.75
"""Share of the peak that matrix products reach: FlashAttention-3's authors report 740 of H100's 989 TFLOP/s (arXiv
2407.08608), FlashAttention-2's up to 73 % of A100's (arXiv 2307.08691). Theirs, not ours, on these GPUs."""
STATS_SHARE = MATRIX_SHARE / 1.15
"""With the entropy streamed: ToProVAR's authors report 15 % over FlashAttention."""
GATHER_SHARE = MATRIX_SHARE * 0.65
"""With gathered keys: Chipmunk's authors report 9.3x at 93 % sparsity on an H100, 65 % of the ideal."""

# Warp instructions on sm_90, rounded from docs/notebook (column lists, counted). A step of the search is 46 and two
# for each key of a thread; a step of the compaction was 257 to 314.
SELECT_STEPS, SELECT_STEP, SELECT_KEY, SELECT_CHUNK, SELECT_FIXED = 20, 46, 2, 300, 400
MARK = 360
GATHER_STEP, GATHER_FIXED = 578, 115
COMPACT_STEP, COMPACT_FIXED = 644, 95
SPREAD_STEP, SPREAD_FIXED = 53, 498


@dataclass(frozen=True)
class Work:
    """What one call asks of a GPU.

    Attributes:
        flops: of matrix products, or of everything where nothing else is counted.
        bytes: read and written, as if none of it were in a cache.
        instructions: of warps, where an op multiplies nothing.
        launches: kernels started one after another.
        share: of the peak in FLOPs that such a kernel reaches.
    """

    flops: float = 0.0
    bytes: float = 0.0
    instructions: float = 0.0
    launches: int = 1
    share: float = MATRIX_SHARE


def require_triton() -> None:
    """Raise `KernelError` where Triton is missing: blocks are chosen and kernels compiled by modules that import it."""
    if importlib.util.find_spec("triton") is None:
        must = "be installed where seconds of another GPU are predicted"
        raise fail("triton", must, "no such package", "pip install triton, on Linux; it needs no GPU")


def element_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in the static table. Raises `KernelError` where there are no kernels for it."""
    names = {value: name for name, value in ELEMENTS.items()}
    if dtype not in names:
        raise fail("dtype", f"be one of {', '.join(str(known) for known in names)}", dtype)
    return names[dtype]


def step_arithmetic(kernel: str, block: Mapping[str, int], head_dim: int, itemsize: int) -> tuple[int, int]:
    """Return FLOPs and bytes of one step of a kernel's loop: BN keys against BM queries.

    FLOPs count the head dimension as padded; bytes are those of K, V and indices, in elements of `itemsize` bytes.
    """
    from sparvar.kernels.common.blocks import block_dim

    operands = 1 if kernel == "column_sums" else 2  # products; and of K and V what is read
    flops = operands * 2 * block["m"] * block["n"] * block_dim(head_dim)
    loaded = operands * block["n"] * head_dim * itemsize
    if kernel == "column_sparse_attention":
        loaded += block["n"] * INT32
    return flops, loaded


@dataclass(frozen=True)
class SiteWork:
    """The ops of one attention site, each as `Work`: B batch rows, H heads, head dimension D, one dtype.

    `hip`: blocks as pinned for AMD. N, T, G and grids are those of a call.

    Raises `KernelError` on a head dimension or dtype without kernels, and where Triton is missing.
    """

    rows: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    hip: bool = False

    def __post_init__(self) -> None:
        require_triton()
        element_name(self.dtype)
        if not 0 < self.head_dim <= MAX_DIM or self.head_dim % 8:
            raise fail("head_dim", f"be a multiple of 8 up to {MAX_DIM}", self.head_dim)

    def block(self, kernel: str, queries: int) -> dict[str, int]:
        """Return the pinned block of an attention kernel, as it is launched for `queries` of a grid or a tile."""
        from sparvar.kernels.common.blocks import block_queries

        module: Any = importlib.import_module(f"sparvar.kernels.{kernel}.gpu")
        block: dict[str, int] = module.pinned(self.head_dim, self.dtype, self.hip)._asdict()
        return {**block, "m": block_queries(block["m"], queries)}

    def _step(self, kernel: str, block: Mapping[str, int]) -> tuple[int, int]:
        return step_arithmetic(kernel, block, self.head_dim, self.dtype.itemsize)

    def _once(self, queries: int, tensors: int) -> float:
        """Bytes of `tensors` of [B, H, N, D]."""
        return tensors * self.rows * self.heads * queries * self.head_dim * self.dtype.itemsize

    def dense(self, queries: int, keys: int) -> Work:
        """FlashAttention of a framework: 4 N T D FLOPs a head, nothing padded; K and V read once per block of queries.

        Its block of queries is that of `attention_stats`.
        """
        block = self.block("attention_stats", queries)
        each = self.rows * self.heads
        read = axis_tiles(queries, block["m"]) * 2 * keys * self.head_dim * self.dtype.itemsize
        return Work(4.0 * each * queries * keys * self.head_dim, each * read + self._once(queries, 2))

    def attention_stats(self, queries: int, keys: int) -> Work:
        """Dense attention with log-sum-exp and entropy."""
        block = self.block("attention_stats", queries)
        flops, loaded = self._step("attention_stats", block)
        each = self.rows * self.heads
        steps = each * axis_tiles(queries, block["m"]) * axis_tiles(keys, block["n"])
        written = 2 * each * queries * FP32
        return Work(steps * flops, steps * loaded + self._once(queries, 2) + written, share=STATS_SHARE)

    def column_sums(self, grid: tuple[int, int], tile: tuple[int, int], keys: int, stride: int) -> Work:
        """Scores of every `stride`-th query of a tile in both axes against all keys, [B, H, G, T] written."""
        from sparvar.kernels.column_sums.gpu import SPAN

        sampled = axis_tiles(tile[0], stride) * axis_tiles(tile[1], stride)
        block = self.block("column_sums", sampled)
        flops, loaded = self._step("column_sums", block)
        parts = axis_tiles(sampled, block["m"])
        lists = self.rows * self.heads * QueryTiles(grid, tile).number
        steps = lists * axis_tiles(keys, block["n"])
        programs = lists * axis_tiles(keys, SPAN)
        queries = block["m"] * (self.head_dim * self.dtype.itemsize + FP32)  # with their log-sum-exp
        loads = programs if parts == 1 else steps * parts
        return Work(steps * parts * flops, steps * loaded + loads * queries + lists * keys * FP32)

    def select_columns(self, tiles: int, keys: int, kept: int) -> Work:
        """The `kept` largest of each row of T sums. Rows that do not fit into registers are read at every step."""
        from sparvar.kernels.select_columns.gpu import configuration

        constants, warps = configuration(keys)
        lists = self.rows * self.heads * tiles
        resident = constants["RESIDENT"]
        held = (constants["BLOCK"] + constants["REST"] if resident else keys) / (32 * warps)
        chunks = axis_tiles(keys, constants["CHUNK"])
        steps = SELECT_FIXED + SELECT_STEPS * (SELECT_STEP + SELECT_KEY * held) + chunks * SELECT_CHUNK
        reads = 1 if resident else SELECT_STEPS + 1
        moved = lists * (reads * keys * FP32 + kept * INT32)
        return Work(0.0, moved, lists * warps * steps)

    def map_columns(self, from_tiles: int, to_tiles: int, kept: int, capacity: int, keys: int) -> Work:
        """Lists of `kept` columns of the source tiles to lists of `capacity`: a fill, kernels and an assertion."""
        from sparvar.kernels.map_columns import gpu

        sources, targets = (self.rows * self.heads * tiles for tiles in (from_tiles, to_tiles))
        units = axis_tiles(keys, gpu.ROW_UNIT)
        bits = units * gpu.ROW_UNIT  # bytes of a row of marks
        lists = targets * capacity * INT32
        moved = sources * (bits + kept * (INT32 + 1)) + sources * bits + lists
        issued = MARK * gpu.MARK_WARPS * sources * axis_tiles(kept, gpu.MARK_BLOCK)
        if to_tiles < gpu.SHARED_FROM * from_tiles:
            issued += (GATHER_FIXED + GATHER_STEP * units) * gpu.GATHER_WARPS * targets
            return Work(0.0, moved, issued, launches=4)
        issued += (COMPACT_FIXED + COMPACT_STEP * units) * gpu.GATHER_WARPS * sources
        issued += (SPREAD_FIXED + SPREAD_STEP * axis_tiles(capacity, gpu.SPREAD_BLOCK)) * gpu.SPREAD_WARPS * targets
        moved += 2 * sources * capacity * INT32  # one list for each source tile, written and read
        return Work(0.0, moved, issued, launches=5)

    def local_columns(self) -> Work:
        """Nothing: its lists are made once for a schedule and kept."""
        return Work(launches=0)

    def column_sparse_attention(
        self, grid: tuple[int, int], tile: tuple[int, int], kept: float, correction: bool = False
    ) -> Work:
        """Attention to lists of `kept` columns on average. A list ends within a step: half a step more.

        Counted with the check of its lists, which is on by default: a fill, a kernel that reads them, an assertion.
        """
        size = tile[0] * tile[1]
        block = self.block("column_sparse_attention", size)
        flops, loaded = self._step("column_sparse_attention", block)
        lists = self.rows * self.heads * QueryTiles(grid, tile).number
        steps = lists * axis_tiles(size, block["m"]) * max(1.0, kept / block["n"] + 0.5)
        once = self._once(grid[0] * grid[1], 3 if correction else 2)
        return Work(steps * flops, steps * loaded + once + lists * kept * INT32, launches=4, share=GATHER_SHARE)

    def grown_correction(self, source: tuple[int, int], target: tuple[int, int]) -> Work:
        """Upsampling the output correction from one grid to another, in fp32: cast, interpolation, cast back."""
        size = self.dtype.itemsize
        casts = 0 if size == FP32 else size + FP32  # per number, each
        numbers = self.rows * self.heads * self.head_dim
        small, large = (numbers * height * width for height, width in (source, target))
        return Work(0.0, (small + large) * (FP32 + casts), launches=3 if casts else 1)
