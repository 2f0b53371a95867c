"""A small next-scale model of our own that calls attention in each way that published models do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as slow_attn

from sparvar.scale_plans import Plan

WIDTH, HEADS, TEXT = 64, 2, 24
SQUARE = ((1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4), (1, 6, 6))
WIDE = ((1, 1, 1), (1, 1, 2), (1, 2, 4), (1, 3, 6), (1, 4, 8))
TALL = tuple((t, w, h) for t, h, w in WIDE)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """Stands in for flash-attn: operands and result [B, L, H, c], key heads may be shared."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=softmax_scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Stands in for xformers: operands and result [B, L, H, c]."""
    return flash_attn_func(query, key, value, softmax_scale=scale)


@dataclass(frozen=True)
class Convention:
    """How a model calls attention and keeps its cache.

    Attributes:
        call: ``sdpa``, ``sdpa_blhc`` (cached as [B, L, H, c], transposed for the call), ``flash``, ``xformers``,
            ``written`` or ``norm_keys`` (SDPA on keys that are normalised after they were cached).
        groups: query heads per key head.
        repeat: repeat shared key heads before the call instead of passing ``enable_gqa``.
        cache: ``attributes`` or ``dict``.
        rope: rotate queries and keys, in fp32, before they are cached.
        prefix: text tokens kept in the cache.
        alone: the prefix has a call of its own, and there is no scale 1.
        cross: cross-attention to the text in every block.
        numpy: the attention sums the sizes of earlier scales with NumPy to find its part of a table.
        breaks: the block cannot be captured as one graph, its attention can.
        options: further keywords of the attention call.
    """

    call: str = "sdpa"
    groups: int = 1
    repeat: bool = False
    cache: str = "attributes"
    rope: bool = True
    prefix: int = 0
    alone: bool = False
    cross: bool = False
    numpy: bool = False
    breaks: bool = False
    options: tuple[tuple[str, Any], ...] = ()


class SelfAttention(nn.Module):
    def __init__(self, how: Convention) -> None:
        super().__init__()
        self.how, self.c = how, WIDTH // HEADS
        self.shared = HEADS // how.groups
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * self.shared) * self.c)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.options = dict(how.options)
        self.kv_caching(False)

    def kv_caching(self, enable: bool) -> None:
        self.caching, self.cached_k, self.cached_v = enable, None, None
        self.store: dict[str, Tensor] = {}

    def _grow(self, k: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if not self.caching:
            return k, v
        if self.how.cache == "dict":
            if "k" in self.store:
                k, v = torch.cat([self.store["k"], k], dim), torch.cat([self.store["v"], v], dim)
            self.store["k"], self.store["v"] = k, v
            return k, v
        if self.cached_k is None:
            self.cached_k, self.cached_v = k, v
        else:
            k = self.cached_k = torch.cat((self.cached_k, k), dim=dim)
            v = self.cached_v = torch.cat((self.cached_v, v), dim=dim)
        return k, v

    def forward(
        self, x: Tensor, rope: Tensor, scale_schedule: Sequence[Any] | None = None, scale_ind: int = 0
    ) -> Tensor:
        how = self.how
        b, n, _ = x.shape
        if how.numpy and scale_schedule is not None:
            start = np.sum([grid[1] * grid[2] for grid in scale_schedule[:scale_ind]]) if scale_ind else 0
            rope = rope + 0 * torch.arange(512.0)[start : start + n, None]
        blhc = how.call in ("sdpa_blhc", "flash", "xformers")
        q, k, v = self.qkv(x).view(b, n, -1, self.c).split([HEADS, self.shared, self.shared], dim=2)
        if not blhc:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if how.rope:
            turn = rope[:, None] if not blhc else rope[:, :, None]
            q, k = (_rotate(F.normalize(part.float(), dim=-1) * 4, turn) for part in (q, k))
        k, v = self._grow(k, v, 1 if blhc else 2)
        return self.proj(self._attend(q, k, v, blhc).reshape(b, n, WIDTH))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, blhc: bool) -> Tensor:
        how, options, scale = self.how, self.options, 0.5
        heads = 2 if blhc else 1
        if how.repeat:
            k, v = k.repeat_interleave(how.groups, dim=heads), v.repeat_interleave(how.groups, dim=heads)
        if how.call == "flash":
            return flash_attn_func(q.to(v.dtype), k.to(v.dtype), v, softmax_scale=scale, **options)
        if how.call == "xformers":
            return memory_efficient_attention(q.to(v.dtype), k.to(v.dtype), v, scale=scale, **options)
        if how.call == "written":
            weights = (q.to(v.dtype) @ k.to(v.dtype).transpose(-2, -1)) * scale
            return (F.dropout(weights.softmax(dim=-1), 0.1, self.training) @ v).transpose(1, 2)
        if how.call == "sdpa_blhc":
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if how.call == "norm_keys":
            k = F.layer_norm(k, (self.c,))
        grouped = how.groups > 1 and not how.repeat
        out = slow_attn(query=q, key=k, value=v, scale=scale, enable_gqa=grouped, **options)
        return out.transpose(1, 2)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()), dim=-1)


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(TEXT, 2 * WIDTH)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, HEADS, -1).transpose(1, 2)
        k, v = self.kv(text).view(b, text.shape[1], 2, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return slow_attn(q, k, v).transpose(1, 2).reshape(b, n, WIDTH)


class Block(nn.Module):
    def __init__(self, how: Convention) -> None:
        super().__init__()
        self.sa = SelfAttention(how)
        self.ca = CrossAttention() if how.cross else None
        self.norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, rope: Tensor, text: Tensor, scale_schedule: Any = None, scale_ind: int = 0) -> Tensor:
        if self.sa.how.breaks:
            torch._dynamo.graph_break()
        x = x + self.sa(self.norm(x), rope, scale_schedule, scale_ind)
        if self.ca is not None:
            x = x + self.ca(self.norm(x), text)
        return x + self.ffn(self.norm(x))


class Painter(nn.Module):
    """Draws [B, h*w, 4] "images": every scale samples codes that the next scale starts from."""

    def __init__(self, how: Convention, depth: int = 3) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList([Block(how) for _ in range(depth)])
        self.start, self.text = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Linear(TEXT, WIDTH)
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        scale_schedule: Sequence[tuple[int, int, int]] = SQUARE,
        text: Tensor | None = None,
        B: int = 1,
        g_seed: int = 0,
        cfg_list: Sequence[float] = (2.0,) * 5,
        drop_cfg_at: int | None = None,
        cfg_layer: int | None = None,
        stop_after: int = 99,
        pass_schedule: bool = True,
    ) -> Tensor:
        generator = torch.Generator().manual_seed(g_seed)
        text = torch.zeros(1, 7, TEXT) if text is None else text
        guided = any(cfg != 1 for cfg in cfg_list)
        rows = 2 * B if guided else B
        context = text.expand(B, -1, -1)
        context = torch.cat((context, torch.zeros_like(context))) if guided else context
        for block in self.blocks:
            block.sa.kv_caching(True)
        _, last_h, last_w = scale_schedule[-1]
        canvas = torch.zeros(B, 4, last_h, last_w)
        prefix = self.text(context.mean(1, keepdim=True)).expand(rows, self.how.prefix, -1)
        if self.how.alone:
            self._blocks(prefix, self._rope(1, self.how.prefix), context, None, None, 0, None, 1.0)
        x = self.start.repeat(rows, math.prod(scale_schedule[0]), 1)
        for number, (_, h, w) in enumerate(scale_schedule[:stop_after]):
            rope = self._rope(h, w)
            if number == drop_cfg_at:
                rows, x, context = B, x[:B], context[:B]
                for block in self.blocks:
                    block.sa.cached_k, block.sa.cached_v = block.sa.cached_k[:B], block.sa.cached_v[:B]
            if number == 0 and self.how.prefix and not self.how.alone:
                x, rope = torch.cat((prefix, x), 1), torch.cat((self._rope(1, self.how.prefix), rope), 1)
            named = (scale_schedule, number) if pass_schedule else (None, None)
            cfg = cfg_list[number]
            x = self._blocks(x, rope, context, *named, B, cfg_layer, cfg)[:, -h * w :]
            logits = self.head(x)
            if rows == 2 * B:
                logits = cfg * logits[:B] + (1 - cfg) * logits[B:]
            noise = torch.randn(logits.shape, generator=generator)
            codes = torch.sign(logits.float() + 0.3 * noise).transpose(1, 2).reshape(B, 4, h, w)
            canvas += F.interpolate(codes, (last_h, last_w), mode="bilinear") / (number + 1)
            if number + 1 < len(scale_schedule):
                grid = scale_schedule[number + 1][1:]
                coarse = F.interpolate(canvas, grid, mode="area").flatten(2).transpose(1, 2)
                x = self.embed(coarse).repeat(rows // B, 1, 1)
        for block in self.blocks:
            block.sa.kv_caching(False)
        return canvas.flatten(2).transpose(1, 2)

    def _blocks(
        self, x: Tensor, rope: Tensor, text: Tensor, schedule: Any, number: Any, B: int, layer: int | None, cfg: float
    ) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, rope, text, schedule, number)
            if index == layer and x.shape[0] == 2 * B:
                x = cfg * x[:B] + (1 - cfg) * x[B:]
                x = torch.cat((x, x))
        return x

    @staticmethod
    def _rope(h: int, w: int) -> Tensor:
        y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
        rates = torch.arange(1, WIDTH // HEADS // 4 + 1)
        return torch.cat((y.flatten()[:, None] * rates, x.flatten()[:, None] * rates), -1)[None]


def painter(how: Convention | None = None, **fields: Any) -> Painter:
    torch.manual_seed(0)
    return Painter(how or Convention(**fields)).eval()


def plan_for(model: Painter, schedule: Sequence[Sequence[int]] = SQUARE, exact: bool = False, **changes: Any) -> Plan:
    """A plan with one dense, one cs4a and one csla layer, the third last scale deciding.

    ``exact``: csla layers alone, whose windows hold every key, so that the result must be the dense one.
    """
    grids = [list(grid[-2:]) for grid in schedule]
    scales = len(grids)
    sparse = (scales - 1, scales)
    windows = {scale: 2 * max(grid) - 1 if exact else 3 for scale, grid in enumerate(grids, start=1)}
    fields = {
        "name": "painter",
        "model": {
            "sites": [f"blocks.{i}.sa" for i in range(len(model.blocks))],
            "heads": HEADS,
            "head_dim": WIDTH // HEADS,
        },
        "schedule": grids,
        "prefix": model.how.prefix,
        "tile": [2, 3],
        "sink_scales": 1,
        "decision_scale": None if exact else scales - 2,
        "layers": ["dense", "csla" if exact else "cs4a", "csla"],
        "cs4a": {} if exact else {scale: {"budget": 0.4, "window": 3} for scale in sparse},
        "csla": {target: {"windows": {s: w for s, w in windows.items() if 1 < s <= target}} for target in sparse},
    }
    return Plan.model_validate({**fields, **changes}).require()
