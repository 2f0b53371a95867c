"""How important tokens are, and what stands for those that are left out: the formulas of the pruning papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparvar.runtime.reductions.argument_axes import enlarge

Grid = tuple[int, int]
"""(h, w) of a scale."""

ANCHOR_STEP = 4
"""Anchors of SparseVAR stand in every fourth row and column, and in the last ones."""


def score_tokens(name: str, x: Tensor, scale: int, grid: Grid) -> Tensor:
    """Importance of the tokens x [B, N, C] of a scale, by themselves: the mean over rows, which keep the same. [N]."""
    if name == "pivot":
        return pivot(x)
    if name == "tome":
        return tome(x, grid)
    if name == "pitome":
        return pitome(x)
    generator = torch.Generator().manual_seed(scale)
    return torch.rand(x.shape[1], generator=generator).to(x.device)


def pivot(x: Tensor) -> Tensor:
    """Squared distance from the mean token, summed over channels (FastVAR, Eq. 4): [N]."""
    wide = x.float()
    return (wide - wide.mean(dim=1, keepdim=True)).square().sum(-1).mean(0)


def entropy(measured: Sequence[Tensor], source: Grid, target: Grid) -> Tensor:
    """Minus the attention entropy [N_S] at the source scale, mean over layers, enlarged (ToProVAR, Eq. 6): [N]."""
    mean = torch.stack(list(measured)).mean(0)
    return -enlarge(mean[None, :, None], source, target)[0, :, 0]


def change(before: Tensor, behind: Tensor, source: Grid, target: Grid) -> Tensor:
    """Squared size of what a span added at the source scale, mean over rows, each pixel repeated (SparseVAR): [N].

    ``before`` and ``behind`` the span: [B, N_S, C].
    """
    error = (behind - before).float().square().mean(-1).mean(0)
    return torch.nn.functional.interpolate(error.view(1, 1, *source), size=target, mode="nearest").flatten()


def _directions(x: Tensor) -> Tensor:
    """Tokens x [B, N, C] as one direction each, mean over rows: [N, C]."""
    return torch.nn.functional.normalize(x.float().mean(0), dim=-1)


def tome(x: Tensor, grid: Grid) -> Tensor:
    """Minus the largest cosine with a token of the destination set, one of every 2 x 2 (ToMe): [N].

    Destinations themselves always stay.
    """
    height, width = grid
    token = torch.arange(height * width, device=x.device)
    destination = (token // width % 2 == 0) & (token % width % 2 == 0)
    units = _directions(x)
    scores = -(units @ units[destination].T).amax(-1)
    return scores.masked_fill(destination, float("inf"))


def pitome(x: Tensor) -> Tensor:
    """Minus the energy, the mean cosine with all tokens: what is like many others may be merged (PiToMe): [N]."""
    units = _directions(x)
    return -(units @ units.mean(0))


def merge_groups(x: Tensor, kept: Tensor) -> Tensor:
    """For every token of x [B, N, C] the place in ``kept`` int64 [n] of the kept token most similar to it: [N]."""
    units = _directions(x)
    groups = (units @ units[kept].T).argmax(-1)
    groups[kept] = torch.arange(len(kept), device=x.device)
    return groups


def merged(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """The mean of every group's tokens: x [B, N, C] to [B, count, C]."""
    sums = x.new_zeros((x.shape[0], count, x.shape[2])).index_add_(1, groups, x)
    sizes = torch.bincount(groups, minlength=count).to(x.dtype)
    return sums / sizes[None, :, None]


def anchor_axis(size: int, device: torch.device) -> Tensor:
    """Rows or columns of anchors: every fourth, and the last."""
    axis = torch.arange(0, size, ANCHOR_STEP, device=device)
    return axis if (size - 1) % ANCHOR_STEP == 0 else torch.cat((axis, axis.new_tensor([size - 1])))


def anchors_of(grid: Grid, device: torch.device) -> Tensor:
    """Which tokens of a grid (h, w) are anchors: bool [N]."""
    rows, columns = (
        torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, anchor_axis(size, device), True)
        for size in grid
    )
    return (rows[:, None] & columns[None, :]).flatten()


def nearest_anchor(whole: Tensor, kept: Tensor, source: Tensor, grid: Grid) -> Tensor:
    """Give every token that was left out the output of the most similar of the four anchors around it.

    Similarity is the cosine between the span's outputs at the source scale, enlarged, mean over rows; a token that is
    like none of them (below `LEAST_SIMILARITY`) keeps its own input with what the span added at the source scale.

    Args:
        whole: [B, N, C] with that in the places of the tokens that were left out.
        kept: int64 [n], those that were computed.
        source: the span's outputs at the source scale, enlarged, [B, N, C].
        grid: (h, w) of the tokens.
    """
    height, width = grid
    device = whole.device
    guide = torch.nn.functional.normalize(source.float(), dim=-1)
    rows, columns = anchor_axis(height, device), anchor_axis(width, device)
    token = torch.arange(height * width, device=device)
    y, x = token // width, token % width
    up, left = (torch.searchsorted(axis, at, right=True) - 1 for axis, at in ((rows, y), (columns, x)))
    down, right = (up + 1).clamp(max=len(rows) - 1), (left + 1).clamp(max=len(columns) - 1)
    around = torch.stack([rows[a] * width + columns[b] for a in (up, down) for b in (left, right)])  # [4, N]
    likeness = torch.stack([(guide * guide[:, each]).sum(-1).mean(0) for each in around])  # [4, N]
    best, which = likeness.max(0)
    anchor = around.gather(0, which[None])[0]
    replace = best >= LEAST_SIMILARITY
    replace[kept] = False
    return torch.where(replace[None, :, None], whole[:, anchor], whole)


LEAST_SIMILARITY = 0.8
"""SparseVAR's beta: 0.8 to 0.99 in the paper."""
