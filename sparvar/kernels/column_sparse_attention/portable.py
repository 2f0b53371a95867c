"""`column_sparse_attention` in torch ops, on any device: one tile at a time, its columns gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.checks import attention_output
from sparvar.kernels.common.columns import Columns, check_lists
from sparvar.kernels.common.geometry import QueryTiles


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, tiles: QueryTiles, correction: Tensor | None
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q. Arithmetic in fp32, or float64 for float64 inputs."""
    used = check_lists(columns, k.shape[2], ascending=True)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, _, dim = q.shape
    out = attention_output(q)
    grid = q.unflatten(2, tiles.grid)
    width = tiles.grid[1]
    for g, (y0, y1, x0, x1) in enumerate(tiles.rectangles()):
        rows = grid[:, :, y0:y1, x0:x1].flatten(2, 3).to(wide) * scale
        spare = ~used[:, :, g]  # [B', H', K]
        kept = columns.indices[:, :, g].long().masked_fill(spare, 0).expand(batch, heads, -1)[..., None]
        kept = kept.expand(-1, -1, -1, dim)
        scores = rows @ k.gather(2, kept).to(wide).transpose(2, 3)
        scores = scores.masked_fill(spare[:, :, None], float("-inf"))
        part = (torch.softmax(scores, dim=-1) @ v.gather(2, kept).to(wide)).unflatten(2, (y1 - y0, x1 - x0))
        if correction is not None:
            part = part + correction.unflatten(2, tiles.grid)[:, :, y0:y1, x0:x1].to(wide)
        token = torch.arange(y0 * width, y1 * width, device=q.device).view(-1, width)[:, x0:x1].flatten()
        out[:, :, token] = part.flatten(2, 3).to(q.dtype)
    return out
