"""The landscape model that ships with the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparvar.errors import OptionError, message
from sparvar.models.base import Call, Family, Input, Noise, State
from sparvar.models.call_arguments import check_arguments, number


@dataclass(frozen=True)
class LandscapeSettings:
    """What is fixed for all generations of a `LandscapeFamily`.

    Attributes:
        scale_schedule: (h, w) of every scale, the model's own if None.
        guided: without, there are no unconditional rows, as the model draws with ``cfg`` 1.
    """

    scale_schedule: Sequence[tuple[int, int]] | None = None
    guided: bool = True


class LandscapeFamily(Family):
    """``sparvar.zoo.LandscapeVAR``; where it is guided, the second half of the batch counts even with ``cfg`` 1."""

    name = "landscape"
    model_class = "LandscapeVAR"
    settings_class = LandscapeSettings
    needs = ("tokenizer", "classes", "blocks", "condition", "tokens", "logits", "rope", "check_schedule")
    block_values: ClassVar[dict[str, str]] = {"L['x']": "x", "L['cond']": "cond"}
    shared: ClassVar[tuple[str, ...]] = ("total",)

    def __init__(self, model: nn.Module, images: int = 1, settings: LandscapeSettings | None = None) -> None:
        super().__init__(model, images)
        settings = settings or LandscapeSettings()
        try:
            given = self.model.schedule if settings.scale_schedule is None else settings.scale_schedule
            self.schedule = self.model.check_schedule(given)
        except ValueError as error:
            raise OptionError(str(error)) from error
        self.guided = settings.guided
        self.rows = 2 * images if self.guided else images
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

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.blocks[layer](x, state["cond"], self.model.rope(scale - 1, self.schedule))

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, labels = self.model, inputs["labels"]
        both = torch.cat((labels, torch.full_like(labels, len(model.classes)))) if self.guided else labels
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
        return self.model.tokens(torch.cat((level, level)) if self.guided else level, start, scale - 1)

    def enter(self, scale: int, state: State) -> Tensor:
        return self._tokens(state["total"], state["start"], scale)

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model = self.model
        logits = model.logits(state["x"], state["head"]).float()
        if self.guided:
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

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        names = ("labels", "seed", "cfg", "temperature", "on_scale", "scale_schedule")
        check_arguments(cls.name, arguments, names, {})
        labels, seed, cfg = arguments["labels"], arguments["seed"], arguments["cfg"]
        if not labels:
            raise OptionError(message("labels", "name at least one class", "none"))
        network: Any = model
        index = torch.tensor([network.class_index(label) for label in labels])
        family = cls(model, len(labels), LandscapeSettings(arguments["scale_schedule"], guided=cfg != 1.0))
        inputs = {
            "labels": index.to(family.device),
            "cfg": number(cfg),
            "temperature": number(arguments["temperature"]),
        }
        generators = [torch.Generator().manual_seed(seed + image) for image in range(len(labels))]
        return Call(
            family,
            inputs,
            lambda noise: noise.draw(generators),
            after=arguments["on_scale"],
            grad_mode=torch.inference_mode,
        )

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
