"""The landscape model's generation with a compressed KV cache, written slowly from the papers' rules.

Nothing of sparvar's runtime is used. A cache is a list of keys for every layer, row and head; a key knows its scale and
cell, and scores are computed one head at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.transformer import Block, rotate


@dataclass
class Kept:
    """A key of one head: where it is from, and its key and value [D]."""

    scale: int
    cell: int
    key: Tensor
    value: Tensor


@dataclass
class Compression:
    """What is dropped: ``keep``: scale -> kind -> keys of a head; ``kinds``: per layer, one or one per head."""

    method: str
    kinds: Sequence[Sequence[str]]
    keep: Mapping[int, Mapping[str, int]]
    sink_scales: int
    queries: int = 16
    pool: int = 1
    rounded: bool = False
    """Kept keys and values are stored in bfloat16."""


@dataclass
class Run:
    model: LandscapeVAR
    what: Compression
    conditional_from: int = 0
    caches: dict[tuple[int, int, int], list[Kept]] = field(default_factory=dict)
    most: int = 0
    """Keys of all layers together, of one row and head, held at most between two scales."""

    def observers(self, scale: int) -> list[int]:
        """Centres of equal patches: rows and columns floor((i + 1/2) * side / patches)."""
        patches = math.isqrt(self.what.queries)
        h, w = self.model.schedule[scale - 1]
        rows = sorted({math.floor((i + 0.5) * h / min(patches, h)) for i in range(min(patches, h))})
        columns = sorted({math.floor((i + 0.5) * w / min(patches, w)) for i in range(min(patches, w))})
        return [row * w + column for row in rows for column in columns]

    def even(self, scale: int, cell: int) -> int:
        """Bits of the cell's row and column, reversed and interleaved: small numbers first."""
        h, w = self.model.schedule[scale - 1]
        bits = max(1, (max(h, w) - 1).bit_length())
        y, x = (f"{part:0{bits}b}"[::-1] for part in (cell // w, cell % w))
        return int("".join(a + b for a, b in zip(y, x, strict=True)), 2)

    def pick(self, cache: list[Kept], scores: list[float], kind: str, scale: int, count: int) -> list[Kept]:
        """The keys that stay, in their order."""
        sinks = [n for n, kept in enumerate(cache) if kept.scale <= self.what.sink_scales]
        free = [n for n in range(len(cache)) if n not in sinks]
        latest = [n for n in free if cache[n].scale == scale]
        left = count - len(sinks)

        def best(among: list[int], how_many: int) -> list[int]:
            return sorted(among, key=lambda n: (-scores[n], n))[:how_many]

        if self.what.method == "local":
            order = sorted(free, key=lambda n: (-cache[n].scale, self.even(cache[n].scale, cache[n].cell)))
            chosen = order[:left]
        elif kind == "structural":
            recent = best(latest, min(len(latest), max(1, left // 2)))
            middle = [n for n in free if n not in latest]
            chosen = recent + best(middle, left - len(recent))
            chosen += best([n for n in latest if n not in recent], left - len(chosen))
        else:
            chosen = best(free, left)
        return [cache[n] for n in sorted(sinks + chosen)]

    def drop(self, layer: int, scale: int, q: Tensor) -> None:
        """q [rows, H, N, D] of the scale that has just run."""
        if scale == len(self.model.schedule):
            self.caches = {where: [] if where[0] == layer else cache for where, cache in self.caches.items()}
            return
        kinds, counts = self.what.kinds[layer], self.what.keep.get(scale)
        if counts is None or list(kinds) == ["whole"]:
            return
        count = round(sum(counts[kind] for kind in kinds) / len(kinds))
        for row in range(q.shape[0]):
            for head in range(q.shape[1]):
                cache = self.caches[layer, row, head]
                if count >= len(cache):
                    kept = cache
                else:
                    keys = torch.stack([kept.key for kept in cache])
                    scores = [0.0] * len(cache)
                    for query in self.observers(scale):
                        weights = torch.softmax(keys @ q[row, head, query], 0)
                        scores = [score + weight for score, weight in zip(scores, weights.tolist(), strict=True)]
                    reach = self.what.pool // 2
                    near = [scores[max(0, n - reach) : n + reach + 1] for n in range(len(scores))]
                    scores = [sum(part) / len(part) for part in near]
                    kind = kinds[head % len(kinds)] if len(kinds) > 1 else kinds[0]
                    kept = self.pick(cache, scores, kind, scale, count)
                if self.what.rounded:
                    kept = [Kept(k.scale, k.cell, k.key.bfloat16().float(), k.value.bfloat16().float()) for k in kept]
                self.caches[layer, row, head] = kept

    def block(self, layer: int, x: Tensor, cond: Tensor, rope: Tensor, scale: int) -> Tensor:
        block = self.model.blocks[layer]
        assert isinstance(block, Block)
        width = (x.shape[-1],)
        gate1, gate2, gain1, gain2, bias1, bias2 = (cond + block.ada_bias).unsqueeze(2).unbind(1)
        a = block.attn
        y = F.layer_norm(x, width) * (1 + gain1) + bias1
        q, k, v = a.qkv(y).view(*y.shape[:2], 3, a.heads, a.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        temperature = a.scale_log.clamp_max(a.max_scale_log).exp()
        q, k = rotate(F.normalize(q, dim=-1) * temperature, rope), rotate(F.normalize(k, dim=-1), rope)
        out = torch.empty_like(q)
        for row in range(q.shape[0]):
            for head in range(q.shape[1]):
                cache = self.caches.setdefault((layer, row, head), [])
                cache += [Kept(scale, n, k[row, head, n], v[row, head, n]) for n in range(k.shape[2])]
                keys = torch.stack([kept.key for kept in cache])
                values = torch.stack([kept.value for kept in cache])
                out[row, head] = torch.softmax(q[row, head] @ keys.T, -1) @ values
        self.drop(layer, scale, q)
        x = x + a.proj(out.transpose(1, 2).reshape(x.shape)) * gate1
        h = block.fc2(F.gelu(block.fc1(F.layer_norm(x, width) * (1 + gain2) + bias2), approximate="tanh"))
        return x + h * gate2


@torch.inference_mode()
def generate(
    model: LandscapeVAR, label: str, seed: int, what: Compression, cfg: float = 2.0, conditional_from: int = 0
) -> tuple[Tensor, int]:
    """One image [1, 3, H, W] as ``model.generate([label], seed)`` draws it, and the most keys held between scales."""
    run = Run(model, what)
    start, cond, head = model.condition(torch.tensor([model.class_index(label), len(model.classes)]))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, model.tokenizer.dim, *model.schedule[-1])
    for scale, grid in enumerate(model.schedule, start=1):
        level = model.tokenizer.grow(total, grid)
        rows = 1 if 0 < conditional_from <= scale else 2
        x = model.tokens(torch.cat((level, level)), start, scale - 1)[:rows]
        for layer in range(len(model.blocks)):
            x = run.block(layer, x, cond[:rows], model.rope(scale - 1), scale)
        run.most = max(run.most, sum(len(cache) for (_, row, h), cache in run.caches.items() if row == h == 0))
        given, free = model.logits(torch.cat((x, x))[:2] if rows == 1 else x, head).float().chunk(2)
        logits = free + model.scale_guidance(scale - 1, cfg) * (given - free)
        noise = torch.rand(grid[0] * grid[1], model.tokenizer.dim, generator=generator)[None]
        bits = (noise < torch.sigmoid(logits / model.scale_temperature(scale - 1, 1.0))).to(total.dtype)
        total = model.tokenizer.accumulate(total, bits.transpose(1, 2).unflatten(2, grid), scale - 1)
    return model.tokenizer.decode(total).float(), run.most
