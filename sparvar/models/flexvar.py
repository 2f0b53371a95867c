"""FlexVAR (jiaosiyu1999/FlexVAR), class-conditional, any schedule: every scale predicts the image itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.errors import OptionError, message
from sparvar.models.base import Call, State
from sparvar.models.call_arguments import check_arguments
from sparvar.models.sampling import check_sampling, filtered, guided, pick, schedule_noise
from sparvar.models.var_code import ClassCodeFamily, class_call

SAMPLED_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)
"""Grids that the model samples; at others it takes the likeliest entry."""


@dataclass(frozen=True)
class FlexVarSettings:
    """What is fixed for all generations of a `FlexVarFamily`.

    Attributes:
        vqvae: the tokenizer, which the model does not hold.
        infer_patch_nums: side of every scale's grid; the model's own schedule if None.
        top_k, top_p: limits of sampling; 0 is none.
        max_pn: largest side that is sampled, and at which guidance still ramps up.
        used_llamagen_cfg: guidance of one strength at all scales.
        invalid_ids: code book entries that are never drawn.
    """

    vqvae: Any
    infer_patch_nums: Sequence[int] | None = None
    top_k: int = 0
    top_p: float = 0.0
    max_pn: int = 16
    used_llamagen_cfg: bool = False
    invalid_ids: Sequence[int] = ()


class FlexVarFamily(ClassCodeFamily):
    """``FlexVAR``, as the repository's ``autoregressive_infer_cfg`` runs it.

    Nothing is accumulated: each scale predicts the whole image. After a scale that is not the last, the image is
    decoded from that scale's code book entries, enlarged to the last grid as the model enlarges them for its next one.
    """

    name = "flexvar"
    model_class = "FlexVAR"
    settings_class = FlexVarSettings
    needs = (
        "autoregressive_infer_cfg", "blocks", "class_emb", "Cvae", "first_l", "get_logits", "num_classes", "patch_nums",
        "pos_1LC", "pos_start", "shared_ada_lin", "V", "word_embed",
    )  # fmt: skip
    shared: ClassVar[tuple[str, ...]] = ("entry",)

    def __init__(self, model: nn.Module, images: int, settings: FlexVarSettings) -> None:
        super().__init__(model, images)
        sides = tuple(self.model.patch_nums if settings.infer_patch_nums is None else settings.infer_patch_nums)
        self._check(sides)
        check_sampling(settings.top_k, settings.top_p, self.model.V)
        self.settings, self.vqvae = settings, settings.vqvae
        self.require(self.vqvae, "vqvae", ("decode_code", "quantize.embedding"))
        self.roots = {"model": model, "vqvae": self.vqvae}
        self.schedule = tuple((side, side) for side in sides)
        self.noise = schedule_noise([side * side for side in sides], images, self.model.V)

    def _check(self, sides: tuple[int, ...]) -> None:
        subject = "infer_patch_nums"
        if len(sides) < 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise OptionError(message(subject, "be two or more whole numbers above 0", sides))
        if sides[0] ** 2 != self.model.first_l:
            must = f"begin with a grid of {self.model.first_l} tokens, the length of the model's start"
            raise OptionError(message(subject, must, f"{sides[0]}x{sides[0]}"))

    def positions(self, scale: int) -> Tensor:
        """Position embedding of the scale's grid [1, h*w, C], averaged from the largest grid's."""
        return F.interpolate(self.model.pos_1LC, size=self.schedule[scale - 1], mode="area").flatten(2).transpose(1, 2)

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        settings, scales, side = self.settings, len(self.schedule), self.schedule[scale - 1][0]
        logits, cfg = self.model.get_logits(state["x"], state["condition"]), state["cfg"]
        if settings.invalid_ids:
            logits = logits.index_fill(-1, torch.tensor(settings.invalid_ids, device=logits.device), -100.0)
        if settings.used_llamagen_cfg:
            given, free = logits.chunk(2)
            logits = free + (given - free) * cfg
        else:
            ramp = (scale - 1) / min(scales - 1, 9)
            logits = guided(logits, cfg * ramp if side <= settings.max_pn else cfg)
        likeliest = side > settings.max_pn or side not in SAMPLED_SIDES
        logits = filtered(logits, 1 if likeliest else settings.top_k, settings.top_p)
        entry = pick(logits, noise[f"noise/{scale}.draw"])
        if scale == scales:
            return {"entry": entry}
        following = {"x": self.enter(scale + 1, {"entry": entry})}
        return {**following, "entry": entry} if self.partial else following

    def enter(self, scale: int, state: State) -> Tensor:
        book = F.normalize(self.vqvae.quantize.embedding.weight, p=2, dim=-1)
        side = self.schedule[scale - 2][0]
        grid = book[state["entry"]].reshape(self.images, side, side, -1).permute(0, 3, 1, 2)
        return self.tokens(F.interpolate(grid, size=self.schedule[scale - 1], mode="bicubic"), scale)

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
        names = ("vqvae", "infer_patch_nums", "top_k", "top_p", "max_pn", "used_llamagen_cfg")
        mapped = ("B", "label_B", "g_seed", "cfg", "invalid_ids", *names)
        check_arguments(cls.name, arguments, mapped, {"more_smooth": False})
        invalid = arguments["invalid_ids"]
        ids = () if invalid is None else tuple(int(entry) for entry in invalid)
        settings = FlexVarSettings(**{name: arguments[name] for name in names}, invalid_ids=ids)
        return class_call(cls(model, arguments["B"], settings), arguments, result=_signed)

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        fixed = {
            **vars(self.settings),
            "infer_patch_nums": tuple(side for side, _ in self.schedule),
            "invalid_ids": list(self.settings.invalid_ids) or None,
        }
        return _unit(
            self.model.autoregressive_infer_cfg(
                B=self.images, label_B=inputs["labels"], g_seed=seed, cfg=inputs["cfg"].item(), **fixed
            )
        )


def _signed(images: Tensor) -> Tensor:
    """From [0, 1] to the [-1, 1] of the repository's own method, cut to it."""
    return images * 2 - 1


def _unit(images: Tensor) -> Tensor:
    """From about [-1, 1] to [0, 1], as the repository saves images."""
    return ((images.clamp(-1, 1) + 1) / 2).float()
