"""VAR (FoundationVision/VAR), class-conditional, 256 and 512 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.models.base import Call, Family, Input, State
from sparvar.models.call_arguments import check_arguments, class_labels, generator_of, number
from sparvar.models.sampling import check_sampling, draw_entries, filtered, sampling_noise


class VarFamily(Family):
    """``VAR``, as the repository's ``autoregressive_infer_cfg`` runs it.

    Args:
        top_k, top_p: limits of sampling; 0 is none.
        more_smooth: features are Gumbel-softmax means of the code book instead of entries.
    """

    name = "var"
    model_class = "VAR"
    needs = (
        "autoregressive_infer_cfg", "blocks", "class_emb", "Cvae", "get_logits", "lvl_1L", "lvl_embed", "num_classes",
        "patch_nums", "pos_1LC", "pos_start", "shared_ada_lin", "V", "vae_proxy", "vae_quant_proxy", "word_embed",
    )  # fmt: skip
    block_values: ClassVar[dict[str, str]] = {"L['x']": "x", "L['cond_BD']": "modulation"}
    shared: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(
        self, model: nn.Module, images: int = 1, top_k: int = 0, top_p: float = 0.0, more_smooth: bool = False
    ) -> None:
        super().__init__(model, images)
        check_sampling(top_k, top_p, self.model.V)
        self.top_k, self.top_p, self.more_smooth = top_k, top_p, more_smooth
        self.vae, self.quantiser = self.model.vae_proxy[0], self.model.vae_quant_proxy[0]
        self.roots = {"model": model, "vae": self.vae}
        self.schedule = tuple((side, side) for side in self.model.patch_nums)
        self.rows = 2 * images
        names = tuple(str(number) for number in range(self.model.num_classes))
        self.inputs = (
            Input("labels", "class", (images,), "int64", classes=names),
            Input("cfg", "number", (), "float64", default=1.5),
        )
        self.noise = tuple(
            noise
            for scale, (h, w) in enumerate(self.schedule, start=1)
            for noise in sampling_noise(scale, images, h * w, self.model.V, more_smooth)
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.blocks[layer](x=x, cond_BD=state["modulation"], attn_bias=None)

    def caching(self, enable: bool) -> None:
        for block in self.model.blocks:
            block.attn.kv_caching(enable)

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, labels = self.model, inputs["labels"]
        condition = model.class_emb(torch.cat((labels, torch.full_like(labels, model.num_classes))))
        side = self.schedule[-1][0]
        return {
            "x": condition.unsqueeze(1) + model.pos_start + self._positions(1),
            "condition": condition,
            "modulation": model.shared_ada_lin(condition).clone(),
            "features": condition.new_zeros(self.images, model.Cvae, side, side),
            "cfg": inputs["cfg"].clone(),
        }

    def _positions(self, scale: int) -> Tensor:
        """Level and position embedding [1, h*w, C]."""
        sizes = [h * w for h, w in self.schedule]
        part = slice(sum(sizes[: scale - 1]), sum(sizes[:scale]))
        return self.model.lvl_embed(self.model.lvl_1L[:, part]) + self.model.pos_1LC[:, part]

    def enter(self, scale: int, state: State) -> Tensor:
        return self._tokens(F.interpolate(state["features"], size=self.schedule[scale - 1], mode="area"), scale)

    def _tokens(self, features: Tensor, scale: int) -> Tensor:
        """Features [images, Cvae, h, w] as the first block's input [rows, h*w, C]."""
        tokens = self.model.word_embed(features.flatten(2).transpose(1, 2)) + self._positions(scale)
        return tokens.repeat(2, 1, 1)

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model, quantiser, scales = self.model, self.quantiser, len(self.schedule)
        ratio = (scale - 1) / (scales - 1)
        given, free = model.get_logits(state["x"], state["condition"]).chunk(2)
        strength = state["cfg"] * ratio
        logits = filtered((1 + strength) * given - strength * free, self.top_k, self.top_p)
        book = quantiser.embedding.weight
        _, entries = draw_entries(logits, book, noise, scale, ratio, self.more_smooth)
        entries = entries.transpose(1, 2).reshape(self.images, model.Cvae, *self.schedule[scale - 1])
        # The quantiser adds to its argument in place.
        features, following = quantiser.get_next_autoregressive_input(
            scale - 1, scales, state["features"].clone(), entries
        )
        if scale == scales:
            return {"features": features}
        return {"features": features, "x": self._tokens(following, scale + 1)}

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        settings = ("top_k", "top_p", "more_smooth")
        check_arguments(cls.name, arguments, ("B", "label_B", "g_seed", "cfg", *settings), {})
        images = arguments["B"]
        generator = generator_of(model, arguments["g_seed"])
        labels = class_labels(model, images, arguments["label_B"], generator)
        family = cls(model, images, **{name: arguments[name] for name in settings})
        return Call(family, {"labels": labels, "cfg": number(arguments["cfg"])}, lambda noise: noise.draw([generator]))

    def decode(self, state: State) -> Tensor:
        return self.vae.fhat_to_img(state["features"]).add(1).mul(0.5).float()

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        return self.model.autoregressive_infer_cfg(
            B=self.images,
            label_B=inputs["labels"],
            g_seed=seed,
            cfg=inputs["cfg"].item(),
            top_k=self.top_k,
            top_p=self.top_p,
            more_smooth=self.more_smooth,
        ).float()
