"""VAR (FoundationVision/VAR), class-conditional, 256 and 512 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparvar.models.base import Call, State
from sparvar.models.call_arguments import check_arguments
from sparvar.models.sampling import check_sampling, draw_entries, filtered, guided, schedule_noise
from sparvar.models.var_code import ClassCodeFamily, class_call


@dataclass(frozen=True)
class VarSettings:
    """What is fixed for all generations of a `VarFamily`.

    Attributes:
        top_k, top_p: limits of sampling; 0 is none.
        more_smooth: features are Gumbel-softmax means of the code book instead of entries.
    """

    top_k: int = 0
    top_p: float = 0.0
    more_smooth: bool = False


class VarFamily(ClassCodeFamily):
    """``VAR``, as the repository's ``autoregressive_infer_cfg`` runs it."""

    name = "var"
    model_class = "VAR"
    settings_class = VarSettings
    needs = (
        "autoregressive_infer_cfg", "blocks", "class_emb", "Cvae", "get_logits", "lvl_1L", "lvl_embed", "num_classes",
        "patch_nums", "pos_1LC", "pos_start", "shared_ada_lin", "V", "vae_proxy", "vae_quant_proxy", "word_embed",
    )  # fmt: skip

    def __init__(self, model: nn.Module, images: int = 1, settings: VarSettings | None = None) -> None:
        super().__init__(model, images)
        self.settings = settings or VarSettings()
        check_sampling(self.settings.top_k, self.settings.top_p, self.model.V)
        self.hold_tokenizer()
        self.schedule = tuple((side, side) for side in self.model.patch_nums)
        tokens = [h * w for h, w in self.schedule]
        self.noise = schedule_noise(tokens, images, self.model.V, self.settings.more_smooth)

    def nothing_drawn(self, like: Tensor) -> State:
        side = self.schedule[-1][0]
        return {"features": like.new_zeros(self.images, self.model.Cvae, side, side)}

    def positions(self, scale: int) -> Tensor:
        """Level and position embedding [1, h*w, C]."""
        sizes = [h * w for h, w in self.schedule]
        part = slice(sum(sizes[: scale - 1]), sum(sizes[:scale]))
        return self.model.lvl_embed(self.model.lvl_1L[:, part]) + self.model.pos_1LC[:, part]

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model, quantiser, settings, scales = self.model, self.quantiser, self.settings, len(self.schedule)
        ratio = (scale - 1) / (scales - 1)
        logits = guided(model.get_logits(state["x"], state["condition"]), state["cfg"] * ratio)
        logits = filtered(logits, settings.top_k, settings.top_p)
        book = quantiser.embedding.weight
        _, entries = draw_entries(logits, book, noise, scale, ratio, settings.more_smooth)
        entries = entries.transpose(1, 2).reshape(self.images, model.Cvae, *self.schedule[scale - 1])
        # The quantiser adds to its argument in place.
        features, following = quantiser.get_next_autoregressive_input(
            scale - 1, scales, state["features"].clone(), entries
        )
        if scale == scales:
            return {"features": features}
        return {"features": features, "x": self.tokens(following, scale + 1)}

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        names = ("top_k", "top_p", "more_smooth")
        check_arguments(cls.name, arguments, ("B", "label_B", "g_seed", "cfg", *names), {})
        settings = VarSettings(**{name: arguments[name] for name in names})
        return class_call(cls(model, arguments["B"], settings), arguments)

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        return self.model.autoregressive_infer_cfg(
            B=self.images, label_B=inputs["labels"], g_seed=seed, cfg=inputs["cfg"].item(), **vars(self.settings)
        ).float()
