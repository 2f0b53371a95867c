"""Which keys a layer keeps, as positions in the image: for the pictures of the report.

Queries and keys of the decision scale are taken from a dense generation of the model; from there on the public ops
do what a sparse generation does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparvar import kernels
from sparvar.scale_plans import Plan


@dataclass(frozen=True)
class KeptColumns:
    """Keys that one query tile of one head reads at one scale.

    Attributes:
        layer: 0-based; ``policy`` is its policy and ``head`` 0-based.
        scale: 1-based scale of the queries.
        tile: (top, left, bottom, right) of the tile in cells of that scale.
        keys: key numbers, ascending, int64.
    """

    layer: int
    policy: str
    head: int
    scale: int
    tile: tuple[int, int, int, int]
    keys: Tensor


class AttentionRecorder(TorchFunctionMode):
    """Keeps q, k, v [1, H, N or T, D] of row 0 of chosen layers at one scale of a dense generation."""

    def __init__(self, plan: Plan, layers: list[int]) -> None:
        super().__init__()
        self.scale, self.layers, self.per_scale = plan.decision_scale, set(layers), len(plan.layers)
        self.calls = 0
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor, float]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            scale, layer = self.calls // self.per_scale + 1, self.calls % self.per_scale
            self.calls += 1
            if scale == self.scale and layer in self.layers:
                q, k, v = (tensor[:1].clone() for tensor in args[:3])
                self.kept[layer] = (q, k, v, kwargs.get("scale") or q.shape[-1] ** -0.5)
        return func(*args, **kwargs)


def drawn_layers(plan: Plan) -> dict[str, int]:
    """The middle layer of each sparse policy of the plan."""
    chosen = {}
    for policy in ("cs4a", "csla"):
        layers = [layer for layer, name in enumerate(plan.layers) if name == policy]
        if layers:
            chosen[policy] = layers[len(layers) // 2]
    return chosen


def _tiles(plan: Plan, scale: int) -> list[tuple[int, int, int, int]]:
    (height, width), (tile_h, tile_w) = plan.grid(scale), plan.tile
    return [
        (top, left, min(top + tile_h, height), min(left + tile_w, width))
        for top in range(0, height, tile_h)
        for left in range(0, width, tile_w)
    ]


def _spread_tiles(plan: Plan, scale: int, count: int) -> list[int]:
    """Tile numbers along the diagonal of the grid, away from its border where there is room."""
    (height, width), (tile_h, tile_w) = plan.grid(scale), plan.tile
    rows, columns = -(-height // tile_h), -(-width // tile_w)
    at = [(number + 0.5) / count for number in range(count)]
    return [int(share * rows) * columns + int(share * columns) for share in at]


@torch.inference_mode()
def cs4a_columns(plan: Plan, recorder: AttentionRecorder, layer: int, scale: int) -> tuple[Tensor, Tensor]:
    """Indices [1, H, G, K] and counts [1, H, G] of a CS4A layer at ``scale``, from the recorded decision scale."""
    q, k, v, softmax_scale = recorder.kept[layer]
    assert plan.decision_scale is not None
    tiles = kernels.QueryTiles(plan.grid(plan.decision_scale), plan.tile)
    lse = kernels.attention_stats(q, k, v, softmax_scale)[1]
    sums = kernels.column_sums(q, k, lse, softmax_scale, tiles, plan.column_sum_stride)
    chosen = kernels.select_columns(sums, plan.source_columns(scale))
    schedule, window = kernels.Schedule.of(plan.schedule, plan.prefix), plan.cs4a[scale].window
    mapping = kernels.ColumnMap(
        schedule, plan.decision_scale, scale, plan.tile, plan.index_map, plan.sink_scales, window
    )
    return kernels.map_columns(chosen, mapping)


@torch.inference_mode()
def csla_columns(plan: Plan, scale: int) -> tuple[Tensor, Tensor]:
    """Indices [1, 1, G, K] and counts [1, 1, G] of the CSLA layers at ``scale``."""
    schedule, windows = kernels.Schedule.of(plan.schedule, plan.prefix), tuple(plan.windows_list(scale))
    return kernels.local_columns(kernels.LocalWindows(schedule, scale, plan.tile, windows, plan.sink_scales))


def kept_columns(plan: Plan, recorder: AttentionRecorder, tiles: int = 3) -> list[KeptColumns]:
    """Kept keys of a few tiles for one layer of each sparse policy, at the policy's last sparse scale."""
    found = []
    for policy, layer in drawn_layers(plan).items():
        scale = max(plan.cs4a if policy == "cs4a" else plan.csla)
        indices, counts = cs4a_columns(plan, recorder, layer, scale) if policy == "cs4a" else csla_columns(plan, scale)
        head = indices.shape[1] // 2
        for number in _spread_tiles(plan, scale, tiles):
            keys = indices[0, head, number, : int(counts[0, head, number])].long().cpu()
            found.append(KeptColumns(layer, policy, head, scale, _tiles(plan, scale)[number], keys))
    return found
