"""Cases of ``benchmarks/gpu.py``: one self-attention of a published shape with all that may stand in for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sparvar
from sparvar import kernels
from sparvar.scale_plans import ModelInfo, default_plan
from sparvar.zoo.shaped import SHAPES, ShapedVAR

Schedule = tuple[tuple[int, int], ...]


def _schedule(text: str) -> Schedule:
    return tuple((int(h), int(w)) for h, w in (grid.split("x") for grid in text.split()))


SCHEDULES: dict[str, Schedule] = {
    "1:1": _schedule("1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64"),
    "3:2": _schedule("1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52"),
    "1:2": _schedule("1x1 2x2 2x4 3x6 5x10 8x16 11x22 15x30 19x38 23x46 30x60 37x74 45x90"),
}
"""Infinity's one-megapixel schedules, height by width, of three aspect ratios."""

TILE = (8, 16)
SINK_SCALES = 5
BUDGET = 0.2
WINDOWS = (1, 1, 3, 5, 7)  # CSLA's, at the last five scales
SETS = 3
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Largest relative error (2-norm) against float32 attention over the same columns: a few roundings of the dtype."""


@dataclass(frozen=True)
class Sizes:
    """Where and how large: heads per shape, head_dim, batch rows, dtype, scales counted from the last."""

    device: torch.device
    heads: tuple[tuple[str, int], ...]
    head_dim: int
    rows: int
    dtype: torch.dtype
    last_scales: int
    schedule_scales: int

    @classmethod
    def full(cls, device: torch.device) -> Sizes:
        """Infinity-2B and 8B with CFG, the last three scales."""
        return cls(device, (("2B", 16), ("8B", 28)), 128, 2, torch.bfloat16, 3, 13)

    @classmethod
    def toy(cls, device: torch.device) -> Sizes:
        """One head, the schedules cut to nine scales."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return cls(device, (("toy", 1),), 64, 2, dtype, 1, 9)


def _relative(actual: Tensor, exact: Tensor) -> float:
    return float((actual.float() - exact.float()).norm() / exact.float().norm())


def _graph(run: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """A launch that returns its milliseconds: a CUDA graph between two events, or wall time off the GPU."""
    if device.type != "cuda":

        def plain() -> float:
            started = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - started)

        return plain
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes and fills caches outside the capture
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return replay


@dataclass
class KernelCase:
    """One scale of one shape; :meth:`prepare` makes inputs, checks every variant and returns launches."""

    name: str
    sizes: Sizes
    heads: int
    schedule: Schedule
    scale: int
    ratio: str = ""
    kept: dict[str, float] = field(default_factory=dict)
    ideal: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, Any]:
        h, w = self.schedule[self.scale - 1]
        return {
            "rows": self.sizes.rows,
            "heads": self.heads,
            "head_dim": self.sizes.head_dim,
            "grid": [h, w],
            "keys": self.keys,
            "dtype": str(self.sizes.dtype),
        }

    @property
    def keys(self) -> int:
        return sum(h * w for h, w in self.schedule[: self.scale])

    def _inputs(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        h, w = self.schedule[self.scale - 1]
        generator = torch.Generator(self.sizes.device).manual_seed(seed)
        place = {"device": self.sizes.device, "dtype": self.sizes.dtype, "generator": generator}
        shape = (self.sizes.rows, self.heads)
        q = torch.randn(*shape, h * w, self.sizes.head_dim, **place)  # type: ignore[call-overload]
        k, v = (torch.randn(*shape, self.keys, self.sizes.head_dim, **place) for _ in range(2))  # type: ignore[call-overload]
        return q, k, v

    def _lists(self) -> dict[str, kernels.Columns]:
        """Columns of CSLA, and random ones at ``BUDGET`` for every row, head and tile (the worst case of gathers)."""
        windows = [0] * self.scale
        for back, side in enumerate(reversed(WINDOWS)):
            number = len(self.schedule) - back
            if number <= self.scale:
                windows[number - 1] = side
        device = self.sizes.device
        schedule = kernels.Schedule.of(self.schedule)
        local = kernels.local_columns(
            kernels.LocalWindows(schedule, self.scale, TILE, tuple(windows), SINK_SCALES), device
        )
        tiles = schedule.tiles(self.scale, TILE).number
        generator = torch.Generator(device).manual_seed(1)
        keep = round(BUDGET * self.keys)
        noise = torch.rand(self.sizes.rows, self.heads, tiles, self.keys, generator=generator, device=device)
        return {"csla": local, "column_sparse": kernels.select_columns(noise, keep)}

    def _check_sparse(self, q: Tensor, k: Tensor, v: Tensor, lists: kernels.Columns, out: Tensor) -> None:
        """Compare the first, middle and last tile of one head with float32 attention over their columns."""
        h, w = self.schedule[self.scale - 1]
        across, (indices, counts) = -(-w // TILE[1]), lists
        tokens = torch.arange(h * w, device=q.device).view(h, w)
        tiles = indices.shape[2]
        for tile in {0, tiles // 2, tiles - 1}:
            y, x = (tile // across) * TILE[0], (tile % across) * TILE[1]
            rows = tokens[y : y + TILE[0], x : x + TILE[1]].flatten()
            b, head = indices.shape[0] - 1, indices.shape[1] - 1
            keep = indices[b, head, tile, : int(counts[b, head, tile])].long()
            exact = F.scaled_dot_product_attention(
                q[-1:, -1:, rows].float(), k[-1:, -1:, keep].float(), v[-1:, -1:, keep].float()
            )
            self._agree("column_sparse_attention", out[-1:, -1:, rows], exact)

    def _agree(self, what: str, actual: Tensor, exact: Tensor) -> None:
        error = _relative(actual, exact)
        if not error < TOLERANCE[self.sizes.dtype]:
            raise AssertionError(f"{self.name}, {what}: must agree with float32 attention, relative error {error:.2e}")

    def prepare(self) -> tuple[dict[str, list[Callable[[], float]]], dict[str, str]]:
        """Launches per variant, one for each input set, and the variants that cannot run with the reason."""
        sets = [self._inputs(seed) for seed in range(SETS)]
        lists = self._lists()
        for name, (_, counts) in lists.items():
            self.kept[name] = float(counts.float().mean())
            self.ideal[name] = self.keys / self.kept[name]
        runs: dict[str, list[Callable[[], object]]] = {}
        skipped: dict[str, str] = {}
        self._add_dense(sets, runs, skipped)
        self._add_ours(sets, lists, runs)
        self._add_flex(sets, lists["csla"], runs, skipped)
        device = self.sizes.device
        with torch.inference_mode():
            return {name: [_graph(run, device) for run in calls] for name, calls in runs.items()}, skipped

    def _add_dense(self, sets: list[Any], runs: dict[str, list[Callable[[], object]]], skipped: dict[str, str]) -> None:
        if self.sizes.device.type != "cuda":
            runs["sdpa"] = [partial(F.scaled_dot_product_attention, *one) for one in sets]
            return
        for name, backend in (("sdpa_flash", SDPBackend.FLASH_ATTENTION), ("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION)):

            def dense(one: Any, backend: SDPBackend = backend) -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(*one)

            try:
                dense(sets[0])
            except RuntimeError as error:
                skipped[name] = str(error).splitlines()[0]
                continue
            runs[name] = [partial(dense, one) for one in sets]

    def _add_ours(
        self, sets: list[Any], lists: dict[str, kernels.Columns], runs: dict[str, list[Callable[[], object]]]
    ) -> None:
        h, w = self.schedule[self.scale - 1]
        tiles = kernels.QueryTiles((h, w), TILE)
        scale = self.sizes.head_dim**-0.5
        q, k, v = sets[0]
        out, lse, _ = kernels.attention_stats(q, k, v, scale)
        exact = F.scaled_dot_product_attention(q[-1:, -1:].float(), k[-1:, -1:].float(), v[-1:, -1:].float())
        self._agree("attention_stats", out[-1:, -1:], exact)
        sums = kernels.column_sums(q, k, lse, scale, tiles)
        rows = torch.full_like(sums[..., 0], TILE[0] * TILE[1]) if h % TILE[0] == w % TILE[1] == 0 else None
        if rows is not None:
            self._agree("column_sums", sums.sum(-1), rows)
        runs["stats"] = [partial(kernels.attention_stats, *one, scale) for one in sets]
        if self.sizes.device.type == "cuda":
            from sparvar.kernels.attention_stats import gpu

            runs["stats_without_entropy"] = [partial(gpu.run, *one, scale, entropy=False) for one in sets]
        runs["column_sums"] = [partial(kernels.column_sums, one[0], one[1], lse, scale, tiles) for one in sets]
        for name, found in lists.items():

            def sparse(one: Any, found: kernels.Columns = found) -> Tensor:
                return kernels.column_sparse_attention(*one, found, scale, tiles)

            self._check_sparse(q, k, v, found, sparse(sets[0]))
            runs[name] = [partial(sparse, one) for one in sets]
        for name, work in zip(("select", "map"), self._list_work(k.device), strict=True):
            runs[name] = [work] * len(sets)

    @property
    def source(self) -> int:
        """The decision scale: two scales behind it are sparse, and this one."""
        return min(max(1, len(self.schedule) - 3), self.scale - 1)

    def _list_work(self, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
        """Selection at the decision scale, and mapping of its columns to this scale."""
        schedule = kernels.Schedule.of(self.schedule)
        total = schedule.offsets()[self.source]
        tiles = schedule.tiles(self.source, TILE).number
        sums = torch.rand(self.sizes.rows, self.heads, tiles, total, device=device)
        select = partial(kernels.select_columns, sums, round(BUDGET * total))
        chosen = select()
        mapping = kernels.ColumnMap(schedule, self.source, self.scale, TILE, "relative", SINK_SCALES, 7)
        return select, partial(kernels.map_columns, chosen, mapping)

    def _add_flex(
        self,
        sets: list[Any],
        lists: tuple[Tensor, Tensor],
        runs: dict[str, list[Callable[[], object]]],
        skipped: dict[str, str],
    ) -> None:
        """FlexAttention under CSLA's mask, queries sorted by tile beforehand so that its blocks are the tiles."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        h, w = self.schedule[self.scale - 1]
        ragged, last = h % TILE[0] or w % TILE[1], self.scale == len(self.schedule)
        if ragged or not last or self.sizes.device.type != "cuda":
            reason = "timed at the last scale" if not last else "needs a GPU"
            skipped["flex"] = "the grid is no multiple of the tile" if ragged else reason
            return
        indices, counts = lists
        tiles = indices.shape[2]
        allowed = torch.zeros(tiles, self.keys, dtype=torch.bool, device=self.sizes.device)
        for tile in range(tiles):
            allowed[tile, indices[0, 0, tile, : int(counts[0, 0, tile])].long()] = True
        numbers = torch.arange(h * w, device=self.sizes.device).view(h // TILE[0], TILE[0], w // TILE[1], TILE[1])
        order = numbers.transpose(1, 2).flatten()
        size = TILE[0] * TILE[1]

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return allowed[query // size, key]

        blocks = create_block_mask(mask, None, None, h * w, self.keys, device=str(self.sizes.device))
        if not blocks.sparsity() > 50:
            raise AssertionError(f"{self.name}, flex: its BlockMask must be sparse, got {blocks.sparsity():.0f} %")
        compiled = torch.compile(flex_attention, dynamic=False)
        runs["flex"] = [partial(compiled, q[:, :, order].contiguous(), k, v, block_mask=blocks) for q, k, v in sets]


def kernel_cases(sizes: Sizes, schedules: dict[str, Schedule]) -> Iterator[KernelCase]:
    """Every shape, schedule and late scale, one at a time: inputs are large."""
    for model, heads in sizes.heads:
        for ratio, schedule in schedules.items():
            cut = schedule[: sizes.schedule_scales]
            for scale in range(len(cut) - sizes.last_scales + 1, len(cut) + 1):
                h, w = cut[scale - 1]
                yield KernelCase(f"{model} {ratio} {h}x{w}", sizes, heads, cut, scale, ratio)


def _generations(model: ShapedVAR, device: torch.device, rounds: int) -> list[float]:
    seconds = []
    for turn in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate(seed=turn)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 2:
            seconds.append(time.perf_counter() - started)
    return sorted(seconds)


WHOLE_BLOCKS = "sparvar-block"
"""Blocks compiled whole, cross-attention and all: text of another length then compiles anew."""
VARIANTS = ("eager", "inductor", "sparvar", WHOLE_BLOCKS)


def _model(name: str, schedule: Schedule, sizes: Sizes, depth: int | None) -> ShapedVAR:
    """A random-weight model, made where and as it runs: billions of random numbers are quicker there."""
    shape = SHAPES[name] if depth is None else replace(SHAPES[name], depth=depth)
    torch.set_default_dtype(sizes.dtype)
    try:
        with sizes.device:
            return ShapedVAR(shape, schedule).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def transformer_case(
    name: str, sizes: Sizes, rounds: int, variants: tuple[str, ...] = VARIANTS, depth: int | None = None
) -> dict[str, Any]:
    """A random-weight transformer over the whole schedule: eager, Inductor, and the paper's plan under sparvar."""
    schedule = SCHEDULES["1:1"][: sizes.schedule_scales]
    found: dict[str, Any] = {"shape": name, "seconds": {}, "peak_bytes": {}, "first_seconds": {}}
    for variant in variants:
        torch.compiler.reset()
        model = _model(name, schedule, sizes, depth)
        if variant == "inductor":
            torch._dynamo.config.recompile_limit = 64
            for block in model.blocks:
                block.compile(dynamic=False)
        elif variant.startswith("sparvar"):
            shape = model.shape
            names = [f"blocks.{i}.sa" for i in range(shape.depth)]
            plan = default_plan(schedule, ModelInfo(sites=names, heads=shape.heads, head_dim=shape.head_dim))
            sparvar.compile(model, plan, grain="block" if variant == WHOLE_BLOCKS else "auto")
        if sizes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        _generations(model, sizes.device, -1)
        found["first_seconds"][variant] = time.perf_counter() - started
        if rounds < 0:  # only to fill the compilers' caches
            return found
        found["seconds"][variant] = _generations(model, sizes.device, rounds)
        if sizes.device.type == "cuda":
            found["peak_bytes"][variant] = torch.cuda.max_memory_allocated()
        del model
    middle = {variant: times[len(times) // 2] for variant, times in found["seconds"].items()}
    found["ratios"] = {other: middle[other] / middle["sparvar"] for other in ("eager", "inductor")}
    if WHOLE_BLOCKS in middle:
        found["ratios_whole_blocks"] = {other: middle[other] / middle[WHOLE_BLOCKS] for other in ("eager", "inductor")}
    return found
