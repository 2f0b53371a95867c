"""The order of a scale's tokens by query tile, in which gathered queries lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparvar.kernels.common.geometry import QueryTiles


@dataclass(frozen=True)
class TileOrder:
    """Tokens of a grid, tile after tile in raster order, each tile's in raster order.

    Attributes:
        order: int64 [N], the token at every place.
        rank: int64 [N], the place of every token.
        ends: int64 [G + 1], the first place of every tile, and N.
    """

    order: Tensor
    rank: Tensor
    ends: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int], tile: tuple[int, int], device: torch.device) -> TileOrder:
        """The order on a grid (h, w) of tiles (h, w)."""
        tokens = torch.arange(grid[0] * grid[1]).view(grid)
        parts = [tokens[y0:y1, x0:x1].flatten() for y0, y1, x0, x1 in QueryTiles(grid, tile).rectangles()]
        order = torch.cat(parts)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        ends = torch.tensor([0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()])
        return cls(order.to(device), rank.to(device), ends.to(device))

    def keep(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The tokens of the ``count`` highest scores [N], in tile order: int64 [count]; and starts int32 [G + 1].

        Ties go to the token that comes first in the order of the grid.
        """
        best = torch.sort(scores, descending=True, stable=True).indices[:count]
        places = self.rank[best].sort().values
        starts = torch.searchsorted(places, self.ends).to(torch.int32)
        return self.order[places], starts
