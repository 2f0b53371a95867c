"""What stands for attention where a format has no ops of ours: gathers, products, softmax and top-k alone.

Every function is that of `sparvar.export.sites.native_site`, and computes the same columns; sums are added up in
another order. All that depends on the schedule is a table that is made while the program is traced, so that a program
decides nothing and has no loops. Shapes: B batch rows, H heads, N queries, T keys, D head dim, G query tiles, M queries
of a tile, K columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.errors import CaptureError, PlanError, message
from sparvar.export.sites import SiteFunction, decided, named
from sparvar.kernels.common.columns import mask_boxes, mask_to_lists
from sparvar.kernels.common.geometry import QueryTiles
from sparvar.kernels.map_columns.spans import map_capacity, map_tables
from sparvar.runtime.geometry import column_map
from sparvar.runtime.site_ops import grow_delta
from sparvar.scale_plans import Plan


def plain_site(plan: Plan, kind: str, scale: int, softmax_scale: float) -> SiteFunction:
    """The site of a kind from ops that ONNX and TensorRT have.

    Raises:
        PlanError: the index map sends two keys to one.
    """
    maker = {"decide": _decide, "cs4a": _cs4a, "csla": _csla}[kind]
    return named(maker(plan, scale, softmax_scale), f"plain_{kind}_{scale}")


def tile_order(grid: tuple[int, int], tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Queries in the order of their tiles, int64 [G, M], and the place of every query in it, int64 [N].

    A tile that is cut by the grid's edge is filled up with its first query, whose extra results are not read.
    """
    width, size = grid[1], min(tile[0], grid[0]) * min(tile[1], grid[1])
    order, place = [], [0] * (grid[0] * grid[1])
    for g, (y0, y1, x0, x1) in enumerate(QueryTiles(grid, tile).rectangles()):
        members = [y * width + x for y in range(y0, y1) for x in range(x0, x1)]
        for m, query in enumerate(members):
            place[query] = g * size + m
        order.append(members + members[:1] * (size - len(members)))
    return torch.tensor(order), torch.tensor(place)


def sampled_queries(grid: tuple[int, int], tile: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Queries whose attention column sums are taken from, int64 [S], and their weights in every tile, [G, S].

    See `sparvar.kernels.column_sums`: every ``stride``-th row and column of a tile, weighted so that a tile's sums add
    up to its number of queries.
    """
    rows: list[tuple[int, int, float]] = []
    sampled: list[int] = []
    for y0, y1, x0, x1 in QueryTiles(grid, tile).rectangles():
        some = [y * grid[1] + x for y in range(y0, y1, stride) for x in range(x0, x1, stride)]
        rows.append((len(sampled), len(some), (y1 - y0) * (x1 - x0) / len(some)))
        sampled += some
    weights = torch.zeros(len(rows), len(sampled))
    for g, (start, count, weight) in enumerate(rows):
        weights[g, start : start + count] = weight
    return torch.tensor(sampled), weights


def column_table(plan: Plan, scale: int) -> Tensor:
    """Keys that a source key stands for in every target tile, int32 [G, T_S, A].

    A is the largest number of keys that one stands for. Unused entries, and keys that the tile has anyway (sinks,
    window), hold the number of keys, which is no key.

    Raises:
        PlanError: two source keys stand for one: then a list would hold it twice.
    """
    spans, _, _, _, total = map_tables(column_map(plan, scale))
    first, rows, columns, step = spans.long().unbind(-1)
    parts = []
    for dy in range(int(rows.max())):
        for dx in range(int(columns.max())):
            inside = (dy < rows) & (dx < columns)
            parts.append((first + dy * step + dx).masked_fill(~inside, total))
    mapped = torch.stack(parts, dim=-1)  # [T_S, A]
    used = mapped[mapped < total]
    if len(used.unique()) != len(used):
        must = "have scales that grow, so that no two keys are mapped to one"
        raise PlanError(message("schedule", must, f"{list(plan.schedule)}", "use index map identity"), plan.name)
    own = F.pad(_fixed(plan, scale), (0, 1), value=True)  # [G, total + 1]
    return mapped.masked_fill(own[:, mapped], total).to(torch.int32)


def _fixed(plan: Plan, scale: int) -> Tensor:
    """Keys that every list of a tile has: sinks and the window at the scale, bool [G, total]."""
    tables = map_tables(column_map(plan, scale))
    return mask_boxes(tables.boxes, tables.total, tables.sinks)


def _decide(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    grid = plan.schedule[scale - 1]
    sampled, weights = sampled_queries(grid, plan.tile, plan.column_sum_stride)
    attend = _Attend(plan, scale, softmax_scale)

    def decide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        attend.check(query, key)
        out = F.scaled_dot_product_attention(query, key, value, scale=softmax_scale)
        some = query.index_select(2, sampled).float() * softmax_scale
        mass = torch.softmax(some @ key.float().transpose(2, 3), dim=-1)  # [B, H, S, T]
        sums = weights @ mass  # [B, H, G, T]
        return (
            out,
            *decided(plan, scale, out, sums, _largest, lambda columns, _: attend(query, key, value, columns)),
        )

    return decide


def _largest(sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns with the largest of ``sums`` [B, H, G, T], ascending, int32 [B, H, G, K], and their counts, [B, H, G]."""
    count = min(count, sums.shape[3])
    order = torch.topk(sums, count, dim=3).indices.to(torch.int32)
    columns = torch.topk(order, count, dim=3, largest=False).values
    return columns, torch.full(sums.shape[:3], count, dtype=torch.int32, device=sums.device)


def _cs4a(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    mapping, total, grid = column_map(plan, scale), plan.keys(scale), plan.schedule[scale - 1]
    table = column_table(plan, scale)
    tiles = map_tables(mapping).sources.long()
    lists, sizes = mask_to_lists(_fixed(plan, scale), total)
    lists = lists.masked_fill(torch.arange(total) >= sizes[:, None], total)[:, : int(sizes.max())].contiguous()
    capacity = map_capacity(min(plan.source_columns(scale), table.shape[1]), mapping)
    starts = (torch.arange(len(table)) * table.shape[1])[:, None]  # of every tile's rows in the flat table
    flat = table.flatten(0, 1)  # [G * T_S, A]
    attend = _Attend(plan, scale, softmax_scale)

    def cs4a(
        query: Tensor, key: Tensor, value: Tensor, indices: Tensor, counts: Tensor, *delta: Tensor
    ) -> tuple[Tensor]:
        attend.check(query, key)
        b, h, _, count = indices.shape
        chosen, used = indices.index_select(2, tiles), counts.index_select(2, tiles)  # [B, H, G, K], [B, H, G]
        mapped = flat.index_select(0, (chosen.long() + starts).reshape(-1)).reshape(b, h, len(tiles), count, -1)
        unused = torch.arange(count) >= used.unsqueeze(-1)
        mapped = mapped.masked_fill(unused.unsqueeze(-1), total).flatten(3)
        columns = torch.cat((lists.expand(b, h, -1, -1), mapped), dim=3)
        if columns.shape[3] > capacity:  # what is no key is the largest, and goes
            columns = torch.topk(columns, capacity, dim=3, largest=False).values
        out = attend(query, key, value, columns)
        return (out + grow_delta(delta[0], mapping.sources.grid, grid) if delta else out,)

    return cs4a


def _csla(plan: Plan, scale: int, softmax_scale: float) -> SiteFunction:
    attend = _Attend(plan, scale, softmax_scale)

    def csla(query: Tensor, key: Tensor, value: Tensor, indices: Tensor, counts: Tensor) -> tuple[Tensor]:
        attend.check(query, key)
        unused = torch.arange(indices.shape[3]) >= counts.unsqueeze(-1)
        return (attend(query, key, value, indices.masked_fill(unused, attend.total)),)

    return csla


class _Attend:
    """Attention of every tile to its own columns: rows of keys and values gathered, then two products.

    Gathering whole rows and multiplying is what onnxruntime does best; gathering single elements by expanded indices
    takes several times as long as dense attention of the same shape.
    """

    def __init__(self, plan: Plan, scale: int, softmax_scale: float) -> None:
        self.scale, self.softmax_scale, self.total = scale, softmax_scale, plan.keys(scale)
        self.order, self.place = tile_order(plan.schedule[scale - 1], plan.tile)

    def check(self, query: Tensor, key: Tensor) -> None:
        """Raise `CaptureError` where key heads are shared."""
        if query.shape[1] != key.shape[1]:
            must, got = "have as many key heads as query heads in this format", f"{query.shape[1]} and {key.shape[1]}"
            raise CaptureError(message(f"attention at scale {self.scale}", must, got, "export it as aoti"))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, columns: Tensor) -> Tensor:
        """q [B, H, N, D], k, v [B, H, T, D], columns int32 [B, H, G, K] or [1, 1, G, K] to [B, H, N, D].

        A column that is the number of keys is none.
        """
        b, h, _, d = query.shape
        tiles, members = self.order.shape
        tiled = (query * self.softmax_scale).index_select(2, self.order.reshape(-1)).reshape(b, h, tiles, members, d)
        none = columns >= self.total
        rows = columns.masked_fill(none, 0).long()
        count = columns.shape[3]
        keys, values = (self._gathered(part, rows).reshape(b, h, tiles, count, d) for part in (key, value))
        bias = torch.zeros((), dtype=query.dtype).masked_fill(none, float("-inf")).unsqueeze(3)
        mass = torch.softmax(tiled @ keys.transpose(3, 4) + bias, dim=-1)
        out = (mass @ values).reshape(b, h, tiles * members, d)
        return out.index_select(2, self.place)

    def _gathered(self, part: Tensor, rows: Tensor) -> Tensor:
        """Rows of keys or values by ``rows``, in their order."""
        if rows.shape[:2] == (1, 1):  # the same for all heads
            return part.index_select(2, rows.reshape(-1))
        b, h, length, d = part.shape
        starts = (torch.arange(b * h) * length).reshape(b, h, 1, 1)
        return part.reshape(b * h * length, d).index_select(0, (rows + starts).reshape(-1))
