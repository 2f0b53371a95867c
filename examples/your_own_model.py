"""A next-scale model of your own, in some 20 lines, attached and run.

    python examples/your_own_model.py

Shows all that sparvar asks of a model: self-attention modules whose keys and values grow by ``torch.cat`` from scale to
scale, and a method ``generate``. A plan made by rule runs the last two scales sparse; `explain` says of every attention
whether it is taken, and why. The weights are random, so only the tensors are compared, not pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparvar
from sparvar.scale_plans import ModelInfo, default_plan

SIDES = (1, 2, 4, 8, 12, 16)
WIDTH, HEADS = 64, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, C]: the tokens of one scale
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        self.keys = k = k if self.keys is None else torch.cat((self.keys, k), dim=2)
        self.values = v = v if self.values is None else torch.cat((self.values, v), dim=2)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Painter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.embed = nn.Parameter(torch.randn(1, WIDTH, 1, 1)), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Attention() for _ in range(4))

    @torch.inference_mode()
    def generate(self, batch: int = 1) -> Tensor:  # [B, C, 16, 16]
        canvas = self.start.expand(batch, -1, SIDES[-1], SIDES[-1])
        for block in self.blocks:
            block.keys = block.values = None
        for side in SIDES:
            x = self.embed(F.adaptive_avg_pool2d(canvas, side).flatten(2).transpose(1, 2))
            for block in self.blocks:
                x = block(x)
            canvas = canvas + F.interpolate(x.transpose(1, 2).unflatten(2, (side, side)), SIDES[-1:] * 2)
        return canvas


def main() -> None:
    torch.manual_seed(0)
    model = Painter().eval()
    dense = model.generate()

    sites = tuple(f"blocks.{layer}" for layer in range(len(model.blocks)))
    info = ModelInfo(sites=sites, heads=HEADS, head_dim=WIDTH // HEADS)
    plan = default_plan([(side, side) for side in SIDES], info, tile=(4, 4), name="painter")
    print(plan)
    sparvar.compile(model, plan=plan, inner="eager")
    sparse = model.generate()
    print(sparvar.explain(model))
    error = ((sparse - dense).norm() / dense.norm()).item()
    print(f"relative difference of the outputs: {error:.4f}")

    sparvar.detach(model)  # the model is as it was
    assert torch.equal(model.generate(), dense)


if __name__ == "__main__":
    main()
