"""The landscape model's generation with tokens and rows left out, written slowly from the papers' formulas.

Nothing of sparvar's runtime is used: every block is computed from its weights, keys of skipped tokens are simply not
there, and attention is SDPA over what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparvar.zoo.model import LandscapeVAR
from sparvar.zoo.transformer import Block, rotate


@dataclass
class Reductions:
    """What is left out; the fields mean what they mean in a plan. ``spans``: (first layer, last layer, keep)."""

    score: str = "pivot"
    fill: str = "delta"
    source: int = 0
    spans: Sequence[tuple[int, int, Mapping[int, float]]] = ()
    conditional_from: int = 0
    guidance_fill: str = "copy"
    skip: int = 0


def _enlarge(tokens: Tensor, source: tuple[int, int], target: tuple[int, int], mode: str = "bilinear") -> Tensor:
    grid = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *source)
    grown = F.interpolate(grid, size=target, mode=mode, **({} if mode == "nearest" else {"align_corners": False}))
    return grown.flatten(2).transpose(1, 2)


@dataclass
class Run:
    model: LandscapeVAR
    what: Reductions
    caches: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """(scale, layer) to the block's output; layer -1 is what came into the first."""
    entropies: dict[int, Tensor] = field(default_factory=dict)
    margin: float = 1.0
    """Least distance of a drawn number from the probability that it decides about: below it the last digit matters."""

    def block(
        self, layer: int, x: Tensor, cond: Tensor, rope: Tensor, scale: int, kept: Tensor | None = None
    ) -> Tensor:
        block = self.model.blocks[layer]
        assert isinstance(block, Block)
        width = (x.shape[-1],)
        gate1, gate2, gain1, gain2, bias1, bias2 = (cond + block.ada_bias).unsqueeze(2).unbind(1)
        y = F.layer_norm(x, width) * (1 + gain1) + bias1
        a = block.attn
        q, k, v = a.qkv(y).view(*y.shape[:2], 3, a.heads, a.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        temperature = a.scale_log.clamp_max(a.max_scale_log).exp()
        q, k = rotate(F.normalize(q, dim=-1) * temperature, rope), rotate(F.normalize(k, dim=-1), rope)
        out = self.attend(layer, scale, q, k, v, kept).transpose(1, 2).reshape(x.shape)
        x = x + a.proj(out) * gate1
        h = block.fc2(F.gelu(block.fc1(F.layer_norm(x, width) * (1 + gain2) + bias2), approximate="tanh"))
        return x + h * gate2

    def attend(self, layer: int, scale: int, q: Tensor, k: Tensor, v: Tensor, kept: Tensor | None) -> Tensor:
        """Attention [rows, H, n, D] of the tokens ``kept`` (of all if None), whose keys and values are new."""
        if layer in self.caches:
            old_k, old_v = (part[: q.shape[0]] for part in self.caches[layer])
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.caches[layer] = k, v
        weights = torch.softmax(q @ k.transpose(2, 3), dim=-1)
        if scale == self.what.source:
            self.entropies[layer] = -torch.xlogy(weights, weights).sum(-1).mean((0, 1))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    def source(self, first: int, last: int, rows: int) -> tuple[Tensor, Tensor]:
        before, behind = self.outputs[self.what.source, first - 1], self.outputs[self.what.source, last]
        return before[:rows], behind[:rows]

    def scores(self, first: int, last: int, x: Tensor, scale: int) -> Tensor:
        grid, source = self.model.schedule[scale - 1], self.model.schedule[self.what.source - 1]
        if self.what.score == "pivot":
            return (x - x.mean(1, keepdim=True)).square().sum(-1).mean(0)
        if self.what.score == "entropy":
            mean = torch.stack([self.entropies[layer] for layer in range(first, last + 1)]).mean(0)
            return -_enlarge(mean[None, :, None], source, grid)[0, :, 0]
        if self.what.score in ("tome", "pitome"):
            units = F.normalize(x.mean(0), dim=-1)
            cosine = units @ units.T
            if self.what.score == "pitome":
                return -cosine.mean(-1)
            places = [n for n in range(x.shape[1]) if n // grid[1] % 2 == 0 and n % grid[1] % 2 == 0]
            scores = -cosine[:, places].amax(-1)
            scores[places] = float("inf")
            return scores
        before, behind = self.source(first, last, x.shape[0])
        return _enlarge((behind - before).square().mean(-1).mean(0)[None, :, None], source, grid, "nearest")[0, :, 0]

    def span(self, first: int, last: int, share: float, x: Tensor, cond: Tensor, rope: Tensor, scale: int) -> Tensor:
        grid, source = self.model.schedule[scale - 1], self.model.schedule[self.what.source - 1]
        count = max(1, round(share * x.shape[1]))
        scores = self.scores(first, last, x, scale)
        if self.what.fill == "anchor":
            for n in range(x.shape[1]):
                ends = ((n // grid[1], grid[0]), (n % grid[1], grid[1]))
                if all(at % 4 == 0 or at == size - 1 for at, size in ends):
                    scores[n] = float("inf")
        kept = scores.sort(descending=True, stable=True).indices[:count].sort().values
        y = x[:, kept]
        if self.what.fill == "merge":
            units = F.normalize(x.mean(0), dim=-1)
            groups = (units @ units[kept].T).argmax(-1)
            groups[kept] = torch.arange(len(kept))
            y = torch.stack([x[:, groups == number].mean(1) for number in range(len(kept))], dim=1)
        for layer in range(first, last + 1):
            y = self.block(layer, y, cond, rope[:, kept], scale, kept)
        if self.what.fill == "merge":
            return y[:, groups]
        before, behind = self.source(first, last, x.shape[0])
        if self.what.fill == "anchor":
            return self.anchored(x, y, kept, _enlarge(behind, source, grid), behind - before, grid, source)
        whole = {
            "input": x.clone(),
            "output": _enlarge(behind, source, grid),
            "previous": self.before(last, x.shape[0], scale),
            "delta": x + _enlarge(behind - before, source, grid),
        }[self.what.fill]
        whole[:, kept] = y
        return whole

    def before(self, last: int, rows: int, scale: int) -> Tensor:
        """What layer ``last`` gave at the scale before, on this grid: every pixel the mean of the four around it.

        By the formula of bilinear interpolation, pixel centres at halves, and nothing read outside the grid.
        """
        source, grid = self.model.schedule[scale - 2], self.model.schedule[scale - 1]
        picture = self.outputs[scale - 1, last][:rows].unflatten(1, source)
        for axis in (1, 2):
            old, new = source[axis - 1], grid[axis - 1]
            at = ((torch.arange(new) + 0.5) * old / new - 0.5).clamp(0, old - 1)
            low = at.long()
            part = (at - low).view([-1 if each == axis else 1 for each in range(4)])
            near, far = picture.index_select(axis, low), picture.index_select(axis, (low + 1).clamp(max=old - 1))
            picture = near * (1 - part) + far * part
        return picture.flatten(1, 2)

    @staticmethod
    def anchored(
        x: Tensor, y: Tensor, kept: Tensor, guide: Tensor, added: Tensor, grid: tuple[int, int], source: tuple[int, int]
    ) -> Tensor:
        """SparseVAR: the output of the most similar of the four anchors around, if the cosine is 0.8 or more."""
        whole = x + _enlarge(added, source, grid)
        whole[:, kept] = y
        found = whole.clone()
        lines = [sorted({*range(0, size, 4), size - 1}) for size in grid]
        units = F.normalize(guide, dim=-1)
        for n in range(x.shape[1]):
            if n in kept.tolist():
                continue
            near = []
            for axis, at in zip(lines, divmod(n, grid[1]), strict=True):
                low = max(line for line in axis if line <= at)
                near.append((low, min([line for line in axis if line > at], default=low)))
            around = [a * grid[1] + b for a in near[0] for b in near[1]]
            cosines = [float((units[:, n] * units[:, each]).sum(-1).mean()) for each in around]
            best = max(range(4), key=lambda i: cosines[i])
            if cosines[best] >= 0.8:
                found[:, n] = whole[:, around[best]]
        return found

    def scale(self, scale: int, x: Tensor, cond: Tensor, rope: Tensor) -> Tensor:
        self.outputs[scale, -1] = x
        starts = {first: (last, keep[scale]) for first, last, keep in self.what.spans if keep.get(scale, 1.0) < 1}
        layer = 0
        while layer < len(self.model.blocks):
            if layer in starts:
                last, share = starts[layer]
                x = self.span(layer, last, share, x, cond, rope, scale)
                layer = last
            else:
                x = self.block(layer, x, cond, rope, scale)
            self.outputs[scale, layer] = x
            layer += 1
        return x


@torch.inference_mode()
def generate(model: LandscapeVAR, label: str, seed: int, what: Reductions, cfg: float = 2.0) -> Tensor:
    """One image [1, 3, H, W] as ``model.generate([label], seed)`` draws it, with ``what`` left out."""
    return draw(Run(model, what), label, seed, cfg)


@torch.inference_mode()
def draw(run: Run, label: str, seed: int, cfg: float = 2.0) -> Tensor:
    """The image of a run."""
    model, what = run.model, run.what
    guided: Any = None
    index = torch.tensor([model.class_index(label), len(model.classes)])
    start, cond, head = model.condition(index)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, model.tokenizer.dim, *model.schedule[-1])
    for scale, grid in enumerate(model.schedule[: len(model.schedule) - what.skip], start=1):
        level = model.tokenizer.grow(total, grid)
        x = model.tokens(torch.cat((level, level)), start, scale - 1)
        conditional = 0 < what.conditional_from <= scale
        rows = 1 if conditional else 2
        x = run.scale(scale, x[:rows], cond[:rows], model.rope(scale - 1))
        if scale == what.conditional_from - 1:
            guided = x[:1] - x[1:], grid
        if conditional:
            free = x if what.guidance_fill == "copy" else x - _enlarge(guided[0], guided[1], grid)
            x = torch.cat((x, free))
        given, free = model.logits(x, head).float().chunk(2)
        logits = free + model.scale_guidance(scale - 1, cfg) * (given - free)
        noise = torch.rand(grid[0] * grid[1], model.tokenizer.dim, generator=generator)[None]
        chance = torch.sigmoid(logits / model.scale_temperature(scale - 1, 1.0))
        run.margin = min(run.margin, float((noise - chance).abs().min()))
        bits = (noise < chance).to(total.dtype)
        total = model.tokenizer.accumulate(total, bits.transpose(1, 2).unflatten(2, grid), scale - 1)
    return model.tokenizer.decode(total).float()
