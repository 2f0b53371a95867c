"""Benchmarks of the ops on the shapes of Infinity's square one-megapixel schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar import kernels
from sparvar.errors import KernelError, message
from sparvar.evaluate.timing import Spread, interleave, ratio

SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
SCHEDULE = kernels.Schedule(SIDES, SIDES)
TILE = (8, 16)
SINK_SCALES = 5
WINDOWS = {9: 1, 10: 1, 11: 3, 12: 5, 13: 7}
"""CSLA windows by scale (SparVAR, supplement B): 1 at 24 and 32, then 3, 5, 7."""
DECISION = 11
BUDGET = 0.2
HEAD_DIM = 64

TOLERANCE = 1e-4
"""Largest difference from SDPA allowed before a timing counts: fp32 sums of ten thousand terms of order one."""


@dataclass
class Case:
    """One comparison; ``variants[ours]`` is the op, the others what it is compared with.

    Attributes:
        reach: (variant, ratio to reach): variant time over ours, or ours over it where ``cost`` is set.
        cost: the ratio is a cost (ours over the other), so smaller is better.
        skipped: variant to the reason it could not run.
    """

    name: str
    what: str
    shape: dict[str, int | float]
    variants: dict[str, Callable[[], object]]
    ideal: float | None = None
    reach: dict[str, float] = field(default_factory=dict)
    cost: bool = False
    skipped: dict[str, str] = field(default_factory=dict)


def _keys(scale: int) -> int:
    return sum(side * side for side in SIDES[:scale])


def _inputs(heads: int, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(scale)
    queries, keys = SIDES[scale - 1] ** 2, _keys(scale)
    q = torch.randn(1, heads, queries, HEAD_DIM, generator=generator)
    k, v = (torch.randn(1, heads, keys, HEAD_DIM, generator=generator) for _ in range(2))
    return q, k, v


def _tiles(scale: int) -> kernels.QueryTiles:
    return kernels.QueryTiles((SIDES[scale - 1], SIDES[scale - 1]), TILE)


def _local_windows() -> kernels.LocalWindows:
    windows = tuple(WINDOWS.get(scale, 0) for scale in range(1, 14))
    return kernels.LocalWindows(SCHEDULE, 13, TILE, windows, SINK_SCALES)


def tile_queries(side: int) -> Tensor:
    """Query numbers of every tile, [G, tile_h * tile_w], for a square grid that the tiles divide."""
    numbers = torch.arange(side * side).view(side // TILE[0], TILE[0], side // TILE[1], TILE[1])
    return numbers.transpose(1, 2).flatten(0, 1).flatten(1)


def gather_and_sdpa(q: Tensor, k: Tensor, v: Tensor, columns: kernels.Columns, tiles: Tensor) -> Tensor:
    """Column-sparse attention as a loop of gathers and SDPA per head and tile: what one would write without the op."""
    out = torch.empty_like(q)
    indices, counts = columns
    for head in range(q.shape[1]):
        lists = min(head, indices.shape[1] - 1)  # one list for all heads, or one each
        own_q, own_k, own_v = (tensor[:, head : head + 1] for tensor in (q, k, v))
        for tile, rows in enumerate(tiles):
            keep = indices[0, lists, tile, : int(counts[0, lists, tile])].long()
            out[:, head : head + 1, rows] = F.scaled_dot_product_attention(
                own_q.index_select(2, rows), own_k.index_select(2, keep), own_v.index_select(2, keep)
            )
    return out


def _check(name: str, got: Tensor, expected: Tensor) -> None:
    worst = float((got - expected).abs().max())
    if not worst <= TOLERANCE:
        raise KernelError(message(f"benchmark {name}", f"agree with SDPA to {TOLERANCE:g}", f"{worst:.2e}"))


def column_sparse(heads: int) -> Case:
    """Random columns, 20 % of the keys of the last scale, their own for every head and tile."""
    q, k, v = _inputs(heads, 13)
    side, total = SIDES[12], _keys(13)
    keep = round(BUDGET * total)
    tiles = tile_queries(side)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, heads, len(tiles), total, generator=generator)
    indices = noise.topk(keep, dim=-1).indices.sort(dim=-1).values.int()
    columns = kernels.Columns(indices, torch.full(indices.shape[:-1], keep, dtype=torch.int32))
    scale = HEAD_DIM**-0.5

    def ours() -> Tensor:
        return kernels.column_sparse_attention(q, k, v, columns, scale, _tiles(13))

    def loop() -> Tensor:
        return gather_and_sdpa(q, k, v, columns, tiles)

    _check("column_sparse", ours(), loop())
    return Case(
        "column_sparse_20_percent",
        "column-sparse attention at 20 % of the keys of the last scale",
        {"heads": heads, "queries": side * side, "keys": total, "kept": keep, "head_dim": HEAD_DIM},
        {"ours": ours, "sdpa": lambda: F.scaled_dot_product_attention(q, k, v), "gather_sdpa_loop": loop},
        ideal=total / keep,
        reach={"sdpa": 4.0},
    )


def csla(heads: int, flex: bool) -> Case:
    """CSLA at the last scale against SDPA and FlexAttention under the same mask."""
    q, k, v = _inputs(heads, 13)
    side, total = SIDES[12], _keys(13)
    columns = kernels.local_columns(_local_windows(), q.device)
    tiles = tile_queries(side)
    scale = HEAD_DIM**-0.5

    def ours() -> Tensor:
        return kernels.column_sparse_attention(q, k, v, columns, scale, _tiles(13))

    expected = gather_and_sdpa(q, k, v, columns, tiles)
    _check("csla", ours(), expected)
    mean = float(columns.counts.float().mean())
    case = Case(
        "csla_last_scale",
        "CSLA at the last scale, against SDPA and FlexAttention with the same mask",
        {"heads": heads, "queries": side * side, "keys": total, "kept_mean": mean, "head_dim": HEAD_DIM},
        {"ours": ours, "sdpa": lambda: F.scaled_dot_product_attention(q, k, v)},
        ideal=total / mean,
        reach={"sdpa": 11.0, "flex_raster": 1.6, "flex_tiles": 1.6},
    )
    if flex:
        _add_flex(case, (q, k, v), columns, tiles, expected)
    return case


def _add_flex(
    case: Case,
    qkv: tuple[Tensor, Tensor, Tensor],
    columns: kernels.Columns,
    tiles: Tensor,
    expected: Tensor,
) -> None:
    """FlexAttention twice: queries as they come, and sorted by tile so that its blocks of 128 are the tiles.

    The second is the kinder comparison, as the sorting itself is not timed.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    (q, k, v), (indices, counts) = qkv, columns
    allowed = torch.zeros(len(tiles), k.shape[2], dtype=torch.bool)
    for tile in range(len(tiles)):
        allowed[tile, indices[0, 0, tile, : int(counts[0, 0, tile])].long()] = True
    order = tiles.flatten()
    tile_of = torch.empty(q.shape[2], dtype=torch.long)
    tile_of[order] = torch.arange(len(tiles)).repeat_interleave(tiles.shape[1])
    compiled = torch.compile(flex_attention, dynamic=False)
    for name, queries, owner, truth in (
        ("flex_raster", q, tile_of, expected),
        ("flex_tiles", q[:, :, order].contiguous(), tile_of[order].contiguous(), expected[:, :, order]),
    ):

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor, owner: Tensor = owner) -> Tensor:
            return allowed[owner[query], key]

        try:
            blocks = create_block_mask(mask, None, None, q.shape[2], k.shape[2], device=str(q.device))

            def run(queries: Tensor = queries, blocks: Any = blocks) -> Tensor:
                return compiled(queries, k, v, block_mask=blocks)

            _check(name, run(), truth)
        except (RuntimeError, NotImplementedError) as error:  # no FlexAttention on this device or build
            case.skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        case.variants[name] = run


def column_sums(heads: int) -> Case:
    """Column sums of the decision scale against one dense attention there."""
    q, k, v = _inputs(heads, DECISION)
    side, scale = SIDES[DECISION - 1], HEAD_DIM**-0.5
    out, lse, _ = kernels.attention_stats(q, k, v, scale)
    _check("attention_stats", out, F.scaled_dot_product_attention(q, k, v))
    return Case(
        "column_sums_decision_scale",
        "column sums of the decision scale (40x40), cost against one dense attention there",
        {"heads": heads, "queries": side * side, "keys": _keys(DECISION), "head_dim": HEAD_DIM},
        {
            "ours": lambda: kernels.column_sums(q, k, lse, scale, _tiles(DECISION)),
            "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
        },
        ideal=0.5,
        reach={"sdpa": 0.7},
        cost=True,
    )


def attention_stats(heads: int) -> Case:
    """Dense attention that also returns log-sum-exp and entropy, against SDPA."""
    q, k, v = _inputs(heads, DECISION)
    side, scale = SIDES[DECISION - 1], HEAD_DIM**-0.5
    return Case(
        "attention_stats_decision_scale",
        "dense attention with LSE and entropy at the decision scale, cost against SDPA",
        {"heads": heads, "queries": side * side, "keys": _keys(DECISION), "head_dim": HEAD_DIM},
        {
            "ours": lambda: kernels.attention_stats(q, k, v, scale),
            "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
        },
        cost=True,
    )


def indices(heads: int) -> Iterator[Case]:
    """Selecting and mapping columns: what a sparse site pays besides attention."""
    q, k, v = _inputs(heads, DECISION)
    scale = HEAD_DIM**-0.5
    lse = kernels.attention_stats(q, k, v, scale)[1]
    sums = kernels.column_sums(q, k, lse, scale, _tiles(DECISION))
    keep = round(BUDGET * _keys(13))
    chosen = kernels.select_columns(sums, keep)
    shape: dict[str, int | float] = {"heads": heads, "tiles": sums.shape[2], "columns": sums.shape[3], "kept": keep}
    yield Case(
        "select_columns",
        "top columns of the decision scale",
        shape,
        {"ours": lambda: kernels.select_columns(sums, keep)},
    )
    for index_map in ("identity", "relative", "footprint"):

        def mapped(index_map: str = index_map) -> object:
            mapping = kernels.ColumnMap(SCHEDULE, DECISION, 13, TILE, index_map, SINK_SCALES, 7)
            return kernels.map_columns(chosen, mapping)

        yield Case(
            f"map_columns_{index_map}", f"columns mapped from 40x40 to 64x64, {index_map}", shape, {"ours": mapped}
        )
    yield Case(
        "local_columns",
        "CSLA's column lists of the last scale (made once per process)",
        {"tiles": 32},
        {"ours": lambda: kernels.local_columns(_local_windows(), q.device)},
    )


def cases(heads: int, flex: bool) -> Iterator[Case]:
    """Every case, made one at a time: inputs are large."""
    yield column_sparse(heads)
    yield csla(heads, flex)
    yield column_sums(heads)
    yield attention_stats(heads)
    yield from indices(heads)


@torch.inference_mode()
def run_case(case: Case, rounds: int) -> dict[str, Any]:
    """Time a case; ratios are taken round by round."""
    seconds = interleave(case.variants, rounds)
    others = [name for name in seconds if name != "ours"]
    ratios = {
        name: (ratio(seconds["ours"], seconds[name]) if case.cost else ratio(seconds[name], seconds["ours"])).as_dict()
        for name in others
    }
    return {
        "name": case.name,
        "what": case.what,
        "shape": case.shape,
        "ratio": "ours / other (cost)" if case.cost else "other / ours (speed-up)",
        "ideal": case.ideal,
        "reach": case.reach,
        "seconds": {name: Spread.of(values).as_dict() for name, values in seconds.items()},
        "ratios": ratios,
        "skipped": case.skipped,
    }
