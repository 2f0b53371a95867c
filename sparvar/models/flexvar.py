"""FlexVAR (jiaosiyu1999/FlexVAR), class-conditional, any schedule: every scale predicts the image itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.errors import OptionError, message
from sparvar.models.base import Call, Family, Input, State
from sparvar.models.call_arguments import check_arguments, class_labels, generator_of, number
from sparvar.models.sampling import check_sampling, filtered, pick, sampling_noise

SAMPLED_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)
"""Grids that the model samples; at others it takes the likeliest entry."""


class FlexVarFamily(Family):
    """``FlexVAR``, as the repository's ``autoregressive_infer_cfg`` runs it.

    Nothing is accumulated: each scale predicts the whole image. After a scale that is not the last, the image is
    decoded from that scale's code book entries, enlarged to the last grid as the model enlarges them for its next one.

    Args:
        vqvae: the tokenizer, which the model does not hold.
        infer_patch_nums: side of every scale's grid; the model's own schedule if None.
        top_k, top_p: limits of sampling; 0 is none.
        max_pn: largest side that is sampled, and at which guidance still ramps up.
        used_llamagen_cfg: guidance of one strength at all scales.
        invalid_ids: code book entries that are never drawn.
    """

    name = "flexvar"
    model_class = "FlexVAR"
    needs = (
        "autoregressive_infer_cfg", "blocks", "class_emb", "Cvae", "first_l", "get_logits", "num_classes", "patch_nums",
        "pos_1LC", "pos_start", "shared_ada_lin", "V", "word_embed",
    )  # fmt: skip
    block_values: ClassVar[dict[str, str]] = {"L['x']": "x", "L['cond_BD']": "modulation"}
    shared: ClassVar[tuple[str, ...]] = ("entry",)

    def __init__(
        self,
        model: nn.Module,
        images: int = 1,
        *,
        vqvae: nn.Module,
        infer_patch_nums: Sequence[int] | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        max_pn: int = 16,
        used_llamagen_cfg: bool = False,
        invalid_ids: Sequence[int] = (),
    ) -> None:
        super().__init__(model, images)
        sides = tuple(self.model.patch_nums if infer_patch_nums is None else infer_patch_nums)
        self._check(sides)
        check_sampling(top_k, top_p, self.model.V)
        self.vqvae: Any = vqvae
        self.require(vqvae, "vqvae", ("decode_code", "quantize.embedding"))
        self.roots = {"model": model, "vqvae": vqvae}
        self.schedule = tuple((side, side) for side in sides)
        self.top_k, self.top_p, self.max_pn = top_k, top_p, max_pn
        self.used_llamagen_cfg, self.invalid_ids = used_llamagen_cfg, tuple(invalid_ids)
        self.rows = 2 * images
        names = tuple(str(number) for number in range(self.model.num_classes))
        self.inputs = (
            Input("labels", "class", (images,), "int64", classes=names),
            Input("cfg", "number", (), "float64", default=1.5),
        )
        self.noise = tuple(
            noise
            for scale, (h, w) in enumerate(self.schedule, start=1)
            for noise in sampling_noise(scale, images, h * w, self.model.V)
        )

    def _check(self, sides: tuple[int, ...]) -> None:
        subject = "infer_patch_nums"
        if len(sides) < 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise OptionError(message(subject, "be two or more whole numbers above 0", sides))
        if sides[0] ** 2 != self.model.first_l:
            must = f"begin with a grid of {self.model.first_l} tokens, the length of the model's start"
            raise OptionError(message(subject, must, f"{sides[0]}x{sides[0]}"))

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
        return {
            "x": condition.unsqueeze(1) + model.pos_start + self._positions(1),
            "condition": condition,
            "modulation": model.shared_ada_lin(condition).clone(),
            "cfg": inputs["cfg"].clone(),
        }

    def _positions(self, scale: int) -> Tensor:
        """Position embedding of the scale's grid [1, h*w, C], averaged from the largest grid's."""
        return F.interpolate(self.model.pos_1LC, size=self.schedule[scale - 1], mode="area").flatten(2).transpose(1, 2)

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model, scales, side = self.model, len(self.schedule), self.schedule[scale - 1][0]
        logits = model.get_logits(state["x"], state["condition"])
        if self.invalid_ids:
            logits = logits.index_fill(-1, torch.tensor(self.invalid_ids, device=logits.device), -100.0)
        given, free = logits.chunk(2)
        cfg = state["cfg"]
        if self.used_llamagen_cfg:
            logits = free + (given - free) * cfg
        else:
            strength = cfg * ((scale - 1) / min(scales - 1, 9)) if side <= self.max_pn else cfg
            logits = (1 + strength) * given - strength * free
        likeliest = side > self.max_pn or side not in SAMPLED_SIDES
        entry = pick(filtered(logits, 1 if likeliest else self.top_k, self.top_p), noise[f"noise/{scale}.draw"])
        if scale == scales:
            return {"entry": entry}
        following = {"x": self.enter(scale + 1, {"entry": entry})}
        return {**following, "entry": entry} if self.partial else following

    def enter(self, scale: int, state: State) -> Tensor:
        book = F.normalize(self.vqvae.quantize.embedding.weight, p=2, dim=-1)
        side = self.schedule[scale - 2][0]
        grid = book[state["entry"]].reshape(self.images, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=self.schedule[scale - 1], mode="bicubic")
        tokens = self.model.word_embed(grid.flatten(2).transpose(1, 2)) + self._positions(scale)
        return tokens.repeat(2, 1, 1)

    def decode(self, state: State) -> Tensor:
        entry, (last, _) = state["entry"], self.schedule[-1]
        side = math.isqrt(entry.shape[1])
        shape = [self.images, self.model.Cvae, side, side]
        if side == last:
            return _unit(self.vqvae.decode_code(entry, shape=shape))
        grid = self.vqvae.quantize.get_codebook_entry(entry, shape)
        return _unit(self.vqvae.decode(F.interpolate(grid, size=(last, last), mode="bicubic")))

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        settings = ("vqvae", "infer_patch_nums", "top_k", "top_p", "max_pn", "used_llamagen_cfg")
        mapped = ("B", "label_B", "g_seed", "cfg", "invalid_ids", *settings)
        check_arguments(cls.name, arguments, mapped, {"more_smooth": False})
        images, invalid = arguments["B"], arguments["invalid_ids"]
        generator = generator_of(model, arguments["g_seed"])
        labels = class_labels(model, images, arguments["label_B"], generator)
        ids = () if invalid is None else tuple(int(entry) for entry in invalid)
        family = cls(model, images, invalid_ids=ids, **{name: arguments[name] for name in settings})
        inputs = {"labels": labels, "cfg": number(arguments["cfg"])}
        return Call(family, inputs, lambda noise: noise.draw([generator]), _signed)

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        images = self.model.autoregressive_infer_cfg(
            vqvae=self.vqvae,
            B=self.images,
            label_B=inputs["labels"],
            infer_patch_nums=tuple(side for side, _ in self.schedule),
            g_seed=seed,
            cfg=inputs["cfg"].item(),
            top_k=self.top_k,
            top_p=self.top_p,
            max_pn=self.max_pn,
            used_llamagen_cfg=self.used_llamagen_cfg,
            invalid_ids=list(self.invalid_ids) or None,
        )
        return _unit(images)


def _signed(images: Tensor) -> Tensor:
    """From [0, 1] to the [-1, 1] of the repository's own method, cut to it."""
    return images * 2 - 1


def _unit(images: Tensor) -> Tensor:
    """From about [-1, 1] to [0, 1], as the repository saves images."""
    return ((images.clamp(-1, 1) + 1) / 2).float()
