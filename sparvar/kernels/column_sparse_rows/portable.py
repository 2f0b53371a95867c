"""`column_sparse_rows` by `column_sparse_attention`: every tile's queries in a grid of one row per tile.

Where Triton serves `column_sparse_attention` it serves this too. A grid row has room for the fullest tile, which is
only known on the device: it is bounded by n, so rows are cut into pieces of `PIECE` queries, and pieces that hold
nothing are attended to as padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.column_sparse_attention.op import column_sparse_attention
from sparvar.kernels.common.checks import attention_output
from sparvar.kernels.common.columns import Columns, KeptTokens
from sparvar.kernels.common.geometry import QueryTiles

PIECE = 64


def filtered(columns: Columns, alive: Tensor) -> Columns:
    """Return ascending lists of the same capacity without the keys that ``alive`` bool [T] does not mark."""
    indices, capacity = columns.indices, columns.indices.shape[3]
    lives = columns.used() & alive[indices.long().clamp(0, alive.shape[0] - 1)]
    place = torch.where(lives, lives.cumsum(-1) - 1, capacity)
    lists = indices.new_zeros((*indices.shape[:3], capacity + 1)).scatter_(-1, place, indices)
    return Columns(lists[..., :-1], lives.sum(-1, dtype=torch.int32))


def run(
    q: Tensor, k: Tensor, v: Tensor, columns: Columns, scale: float, kept: KeptTokens, correction: Tensor | None
) -> Tensor:
    """Return [B, H, n, D] in the dtype of q."""
    batch, heads, rows, dim = q.shape
    starts, alive = kept
    indices, counts = columns if alive is None else filtered(columns, alive)
    tiles = indices.shape[2]
    # A piece holds queries of one tile alone. n rows of G tiles make at most n / PIECE + G pieces: a static number.
    pieces = rows // PIECE + tiles
    sizes = starts.diff()
    each = (sizes + PIECE - 1) // PIECE
    ends = each.cumsum(0)
    number = torch.arange(pieces, device=q.device)
    tile = torch.searchsorted(ends, number, right=True).clamp(max=tiles - 1)
    within = number - (ends - each)[tile]
    first = starts[tile] + within * PIECE
    slot = first[:, None] + torch.arange(PIECE, device=q.device)
    real = (slot < starts[tile + 1][:, None]) & (number < ends[-1])[:, None]
    source = torch.where(real, slot, 0).flatten()  # [pieces * PIECE]
    of_pieces = Columns(indices[:, :, tile].contiguous(), counts[:, :, tile].contiguous())
    part = column_sparse_attention(q[:, :, source], k, v, of_pieces, scale, QueryTiles((pieces, PIECE), (1, PIECE)))
    out = attention_output(q)
    # Padding goes behind the last row, which is cut off again.
    target = torch.where(real.flatten(), source, rows)
    whole = out.new_empty((batch, heads, rows + 1, dim))
    whole[:, :, target] = part
    out.copy_(whole[:, :, :rows] if correction is None else whole[:, :, :rows] + correction)
    return out
