"""`column_sparse_attention` in torch ops, on any device: one tile at a time, its columns gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from sparvar.kernels.common.checks import attention_output, fail
from sparvar.kernels.common.geometry import tile_rectangles
from sparvar.kernels.common.torch_compat import assert_on_device

__all__ = ["run"]


def _check_lists(indices: Tensor, counts: Tensor, keys: int) -> None:
    slot = torch.arange(indices.shape[3], device=indices.device)
    used = slot < counts[..., None]
    steps = (indices[..., 1:] > indices[..., :-1]) | ~used[..., 1:]
    for good, subject, must in (
        ((counts >= 1) & (counts <= indices.shape[3]), "counts", "be from 1 to the capacity of indices"),
        ((indices >= 0) & (indices < keys) | ~used, "indices", f"name keys that exist, 0 to {keys - 1}"),
        (steps, "indices", "be ascending without duplicates"),
    ):
        if indices.device.type == "cpu":
            if not bool(good.all()):
                where = (~good).nonzero()[0].tolist()
                raise fail(subject, must, f"something else at {where}")
        else:  # without waiting for the device
            assert_on_device(good.all(), f"{subject}: must {must}")


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    scale: float,
    grid_h: int,
    grid_w: int,
    tile_h: int,
    tile_w: int,
    correction: Tensor | None,
) -> Tensor:
    """Return [B, H, N, D] in the dtype of q. Arithmetic in fp32, or float64 for float64 inputs."""
    _check_lists(indices, counts, k.shape[2])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, _, dim = q.shape
    out = attention_output(q)
    grid = q.reshape(batch, heads, grid_h, grid_w, dim)
    slot = torch.arange(indices.shape[3], device=q.device)
    for g, (y0, y1, x0, x1) in enumerate(tile_rectangles(grid_h, grid_w, tile_h, tile_w)):
        rows = grid[:, :, y0:y1, x0:x1].flatten(2, 3).to(wide) * scale
        spare = slot >= counts[:, :, g, None]  # [B', H', K]
        columns = indices[:, :, g].long().masked_fill(spare, 0).expand(batch, heads, -1)[..., None]
        columns = columns.expand(-1, -1, -1, dim)
        scores = rows @ k.gather(2, columns).to(wide).transpose(2, 3)
        scores = scores.masked_fill(spare[:, :, None], float("-inf"))
        part = (torch.softmax(scores, dim=-1) @ v.gather(2, columns).to(wide)).unflatten(2, (y1 - y0, x1 - x0))
        if correction is not None:
            extra = correction.reshape(batch, heads, grid_h, grid_w, dim)[:, :, y0:y1, x0:x1]
            part = part + extra.to(wide)
        token = torch.arange(y0 * grid_w, y1 * grid_w, device=q.device).view(-1, grid_w)[:, x0:x1].flatten()
        out[:, :, token] = part.flatten(2, 3).to(q.dtype)
    return out
