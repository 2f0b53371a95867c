"""The landscape model that ships with the project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError
from sparvar.export.families.base import Family, Input, Noise, State


class LandscapeFamily(Family):
    """``sparvar.zoo.LandscapeVAR``. Guidance is always on: with ``cfg`` 1 both halves of a batch count, the second not.

    Args:
        scale_schedule: (h, w) of every scale, the model's own if None.
    """

    name = "landscape"
    model_class = "LandscapeVAR"
    needs = ("tokenizer", "classes", "blocks", "condition", "tokens", "logits", "rope", "check_schedule")
    block_values: ClassVar[dict[str, str]] = {"L['x']": "x", "L['cond']": "cond"}

    def __init__(
        self, model: nn.Module, images: int = 1, scale_schedule: Sequence[tuple[int, int]] | None = None
    ) -> None:
        super().__init__(model, images)
        try:
            given = self.model.schedule if scale_schedule is None else scale_schedule
            self.schedule = self.model.check_schedule(given)
        except ValueError as error:
            raise OptionError(str(error)) from error
        self.rows = 2 * images
        self.inputs = (
            Input("labels", "class", (images,), "int64", classes=self.model.classes),
            Input("cfg", "number", (), "float64", default=2.0),
            Input("temperature", "number", (), "float64", default=1.0),
        )
        bits = self.model.tokenizer.dim
        self.noise = tuple(
            Noise(f"noise/{scale}", scale, (images, h * w, bits), per_image=True)
            for scale, (h, w) in enumerate(self.schedule, start=1)
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.blocks[layer](x, state["cond"], self.model.rope(scale - 1, self.schedule))

    def caching(self, enable: bool) -> None:
        for block in self.model.blocks:
            block.attn.kv_caching(enable)

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, labels = self.model, inputs["labels"]
        both = torch.cat((labels, torch.full_like(labels, len(model.classes))))
        start, cond, head = model.condition(both)
        total = start.new_zeros(self.images, model.tokenizer.dim, *self.schedule[-1])
        return {
            "x": self._tokens(total, start, 1),
            "cond": cond,
            "head": head,
            "start": start,
            "total": total,
            "cfg": inputs["cfg"].clone(),
            "temperature": inputs["temperature"].clone(),
        }

    def _tokens(self, total: Tensor, start: Tensor, scale: int) -> Tensor:
        level = self.model.tokenizer.grow(total, self.schedule[scale - 1])
        return self.model.tokens(torch.cat((level, level)), start, scale - 1)

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model = self.model
        logits = model.logits(state["x"], state["head"]).float()
        given, free = logits.chunk(2)
        logits = free + model.scale_guidance(scale - 1, state["cfg"]) * (given - free)
        chance = torch.sigmoid(logits / model.scale_temperature(scale - 1, state["temperature"]))
        bits = (noise[f"noise/{scale}"] < chance).to(state["total"].dtype)
        bits = bits.transpose(1, 2).unflatten(2, self.schedule[scale - 1])
        total = model.tokenizer.accumulate(state["total"], bits, scale - 1)
        changed = {"total": total}
        if scale < len(self.schedule):
            changed["x"] = self._tokens(total, state["start"], scale + 1)
        return changed

    def decode(self, state: State) -> Tensor:
        return self.model.tokenizer.decode(state["total"]).float()

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        return self.model.generate(
            inputs["labels"].tolist(),
            seed,
            cfg=inputs["cfg"].item(),
            temperature=inputs["temperature"].item(),
            scale_schedule=self.schedule,
        )
