"""What VAR and the models that were written on its code (FlexVAR, HART) have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.models.base import Call, Family, Input, State
from sparvar.models.call_arguments import generator_of, number


class VarCodeFamily(Family):
    """Guided by a second half of the batch; ``state["features"]`` [images, Cvae, h, w] is what is drawn so far.

    Attributes:
        vae, quantiser: the tokenizer and its quantiser, where the model holds them (`hold_tokenizer`).
    """

    shared: ClassVar[tuple[str, ...]] = ("features",)
    vae: Any
    quantiser: Any

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__(model, images)
        self.rows = 2 * images

    def hold_tokenizer(self) -> None:
        """Take the tokenizer from the model."""
        self.vae, self.quantiser = self.model.vae_proxy[0], self.model.vae_quant_proxy[0]
        self.roots = {"model": self.model, "vae": self.vae}

    @abstractmethod
    def positions(self, scale: int) -> Tensor:
        """What is added to a scale's tokens [1, tokens, C]."""

    def tokens(self, features: Tensor, scale: int) -> Tensor:
        """Features [images, Cvae, h, w] as the first block's input [rows, h*w, C]."""
        tokens = self.model.word_embed(features.flatten(2).transpose(1, 2)) + self.positions(scale)
        return tokens.repeat(2, 1, 1)

    def enter(self, scale: int, state: State) -> Tensor:
        return self.tokens(F.interpolate(state["features"], size=self.schedule[scale - 1], mode="area"), scale)

    def decode(self, state: State) -> Tensor:
        return self.vae.fhat_to_img(state["features"]).add(1).mul(0.5).float()


class ClassCodeFamily(VarCodeFamily):
    """Of these, the models that draw classes: blocks take a modulation, and the first scale is a class."""

    block_values: ClassVar[dict[str, str]] = {"L['x']": "x", "L['cond_BD']": "modulation"}

    def __init__(self, model: nn.Module, images: int) -> None:
        super().__init__(model, images)
        names = tuple(str(number) for number in range(self.model.num_classes))
        self.inputs = (
            Input("labels", "class", (images,), "int64", classes=names),
            Input("cfg", "number", (), "float64", default=1.5),
        )

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.blocks[layer](x=x, cond_BD=state["modulation"], attn_bias=None)

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, labels = self.model, inputs["labels"]
        condition = model.class_emb(torch.cat((labels, torch.full_like(labels, model.num_classes))))
        return {
            "x": condition.unsqueeze(1) + model.pos_start + self.positions(1),
            "condition": condition,
            "modulation": model.shared_ada_lin(condition).clone(),
            **self.nothing_drawn(condition),
            "cfg": inputs["cfg"].clone(),
        }

    def nothing_drawn(self, like: Tensor) -> State:
        """What of the state says which image is drawn so far, before the first scale; of the dtype of ``like``."""
        return {}


def class_call(family: ClassCodeFamily, arguments: Mapping[str, Any], **changes: Any) -> Call:
    """The run of a call with ``label_B``, ``g_seed`` and ``cfg``; ``changes`` are fields of `Call`.

    ``label_B`` is a tensor of indices [images], one class for all, or None for random ones.
    """
    model: Any = family.model
    generator = generator_of(model, arguments["g_seed"])
    given = arguments["label_B"]
    if given is None:
        drawn = torch.multinomial(model.uniform_prob, num_samples=family.images, replacement=True, generator=generator)
        given = drawn.reshape(family.images)
    elif isinstance(given, int):
        device = model.lvl_1L.device if hasattr(model, "lvl_1L") else family.device
        given = torch.full((family.images,), model.num_classes if given < 0 else given, device=device)
    inputs = {"labels": given, "cfg": number(arguments["cfg"])}
    return Call(family, inputs, lambda noise: noise.draw([generator]), **changes)
