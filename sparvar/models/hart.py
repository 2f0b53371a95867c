"""HART (mit-han-lab/hart), text to image: tokens of all scales, and a diffusion head for what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparvar.errors import CaptureError, message
from sparvar.models.base import Call, Input, Noise, State
from sparvar.models.call_arguments import check_arguments, generator_of, number
from sparvar.models.sampling import check_sampling, draw_entries, filtered, guided, schedule_noise
from sparvar.models.var_code import VarCodeFamily

FUSED_NORM = "LlamaRMSNormFused"


@dataclass(frozen=True)
class HartSettings:
    """What is fixed for all generations of a `HartFamily`.

    Attributes:
        top_p: mass of sampling; 0 is all.
        more_smooth: features are Gumbel-softmax means of the code book instead of entries.
        final_stage: 0 adds the diffusion head's residual at the last scale, anything else leaves it out.
    """

    top_p: float = 0.0
    more_smooth: bool = False
    final_stage: int = 0


class HartFamily(VarCodeFamily):
    """``HARTForT2I``, as the repository's ``autoregressive_infer_cfg`` runs it, its last scale in one step.

    The text has a call of its own, scale 0, which draws the token of the 1x1 grid; the schedule begins at 2x2. Limits
    of sampling are the model's own: the 600 likeliest entries below its scale 8, 300 from there on.
    """

    name = "hart"
    model_class = "HARTForT2I"
    settings_class = HartSettings
    needs = (
        "autoregressive_infer_cfg", "blocks", "context_dim", "context_embed", "context_norm", "context_token", "Cvae",
        "decoder_norm", "diffloss.gen_diffusion.p_mean_variance", "diffloss.net.forward_with_cfg", "get_logits",
        "lvl_1L", "lvl_embed", "patch_nums", "pos_1LC", "pos_start", "V", "vae_proxy", "vae_quant_proxy", "word_embed",
    )  # fmt: skip
    block_values: ClassVar[dict[str, str]] = {
        "L['x']": "x",
        "L['cond_BD']": "condition",
        "L['context_position_ids']": "positions",
        "L['context_mask']": "mask",
    }

    def __init__(self, model: nn.Module, images: int = 1, settings: HartSettings | None = None) -> None:
        super().__init__(model, images)
        self.settings = settings = settings or HartSettings()
        check_sampling(0, settings.top_p, self.model.V)
        if self.model.diffloss.sampler != "iddpm":
            raise CaptureError(message("hart family, diffloss.sampler", "be iddpm", self.model.diffloss.sampler))
        self.hold_tokenizer()
        self.sides = tuple(self.model.patch_nums)
        self.schedule = tuple((side, side) for side in self.sides[1:])
        self.prefix = self.model.context_token
        text = (images, self.prefix)
        self.inputs = (
            Input("text", "tensor", (*text, self.model.context_dim), "float32"),
            Input("context_mask", "tensor", text, "bool"),
            Input("context_position_ids", "tensor", text, "int64"),
            Input("cfg", "number", (), "float64", default=4.5),
        )
        tokens = [side * side for side in self.sides]
        self.noise = schedule_noise(tokens, images, self.model.V, settings.more_smooth, first=0)
        if settings.final_stage == 0:
            self.noise += tuple(self._diffusion_noise())

    def _diffusion_noise(self) -> Iterator[Noise]:
        """The start of one half of the guided batch, and of every step but the last what it adds to both."""
        last, tokens = len(self.schedule), self.images * self.sides[-1] ** 2
        channels, steps = self.model.diffloss.in_channels, self.model.diffloss.gen_diffusion.num_timesteps
        yield Noise(f"noise/{last}.start", last, (tokens, channels), distribution="normal")
        for step in reversed(range(1, steps)):
            yield Noise(f"noise/{last}.step{step}", last, (2 * tokens, channels), distribution="normal")

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.blocks[layer](
            x=x,
            cond_BD=state["condition"],
            attn_bias=None,
            si=scale,
            context_position_ids=state["positions"],
            context_mask=state["mask"],
        )

    @contextmanager
    def functional(self) -> Iterator[None]:
        """The norm of the compiled extension as tensor functions."""
        norms = [module for module in self.model.modules() if type(module).__name__ == FUSED_NORM]
        for norm in norms:
            if norm.use_quant:
                raise CaptureError(message(f"hart family, {FUSED_NORM}", "give floating point numbers", "int8"))
        forwards = {type(norm): type(norm).forward for norm in norms}
        for cls in forwards:
            cls.forward = _rms_norm
        try:
            yield
        finally:
            for cls, forward in forwards.items():
                cls.forward = forward

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, text, mask = self.model, inputs["text"], inputs["context_mask"]
        ids = inputs["context_position_ids"]
        condition = model.context_embed(model.context_norm(torch.cat((text, torch.zeros_like(text)))))
        # Without text only the first token counts.
        first = (torch.arange(self.prefix, device=mask.device) == 0).expand_as(mask).to(mask.dtype)
        x = condition if model.pos_start is None else condition + model.pos_start
        return {
            "x": x + self.positions(0),
            "condition": condition,
            "positions": torch.cat((ids, torch.zeros_like(ids))),
            "mask": torch.cat((mask, first)),
            "features": condition.new_zeros(self.images, model.Cvae, self.sides[-1], self.sides[-1]),
            "cfg": inputs["cfg"].clone(),
        }

    def positions(self, scale: int) -> Tensor:
        """Level embedding, the same for all tokens of a scale, and position embedding where the model has one."""
        sizes = [self.prefix, *(h * w for h, w in self.schedule)]
        start = sum(sizes[:scale])
        level = self.model.lvl_embed(self.model.lvl_1L[:, start : start + 1])
        if self.model.pos_1LC is None:
            return level
        return level + self.model.pos_1LC[:, start : start + sizes[scale]]

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model, quantiser, last, side = self.model, self.quantiser, len(self.schedule), self.sides[scale]
        # The 1x1 grid's token is drawn from the last of the text; the last scale is guided like the one before it.
        x = state["x"][:, -1:] if scale == 0 else state["x"]
        ratio = min(scale, last - 1) / last
        strength = state["cfg"] * ratio
        logits = guided(model.get_logits(x, state["condition"]), strength)
        logits = filtered(logits, 600 if scale < 7 else 300, self.settings.top_p)
        book = quantiser.embedding.weight
        entry, drawn = draw_entries(logits, book, noise, scale, ratio, self.settings.more_smooth)
        if scale == last:
            if self.settings.final_stage == 0:
                drawn = drawn + self._residual(x, book[entry], strength, noise)
            return {"features": state["features"] + self._grid(drawn, side)}
        # The quantiser adds to its argument in place.
        features, following = quantiser.get_next_autoregressive_input(
            scale, last + 1, state["features"].clone(), self._grid(drawn, side), patch_nums=self.sides
        )
        return {"features": features, "x": self.tokens(following, scale + 1)}

    def _grid(self, features: Tensor, side: int) -> Tensor:
        return features.transpose(1, 2).reshape(self.images, self.model.Cvae, side, side)

    def _residual(self, x: Tensor, entries: Tensor, strength: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """The diffusion head's sample for the last blocks' output x and the entries drawn: [images, L, Cvae]."""
        head, last = self.model.diffloss, len(self.schedule)
        given = self.model.decoder_norm(x + self.model.word_embed(entries).repeat(2, 1, 1)).flatten(0, 1)
        arguments: dict[str, Any] = {"c": given, "cfg_scale": strength}
        latent = noise[f"noise/{last}.start"].repeat(2, 1)
        for step in reversed(range(head.gen_diffusion.num_timesteps)):
            times = torch.full((latent.shape[0],), step, dtype=torch.long, device=latent.device)
            moments = head.gen_diffusion.p_mean_variance(
                head.net.forward_with_cfg, latent, times, clip_denoised=True, model_kwargs=arguments
            )
            latent = moments["mean"]
            if step > 0:
                latent = latent + torch.exp(0.5 * moments["log_variance"]) * noise[f"noise/{last}.step{step}"]
        return (latent * head.vae_scale).reshape(self.rows, -1, head.in_channels)[: self.images]

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        names = ("top_p", "more_smooth", "final_stage")
        texts = ("context_position_ids", "context_mask")
        # The method takes top_k and looks at limits of its own.
        mapped = ("B", "label_B", "g_seed", "cfg", "top_k", *names, *texts)
        check_arguments(cls.name, arguments, mapped, {"num_maskgit_iters": 1})
        family = cls(model, arguments["B"], HartSettings(**{name: arguments[name] for name in names}))
        ids, mask = (arguments[name] for name in texts)
        inputs = {"text": arguments["label_B"], "context_mask": mask, "context_position_ids": ids}
        codes, diffusion = generator_of(model, arguments["g_seed"]), generator_of(model, None)

        def draw(noise: Noise) -> Tensor:
            return noise.draw([diffusion if noise.distribution == "normal" else codes])

        return Call(family, {**inputs, "cfg": number(arguments["cfg"])}, draw)

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        # The diffusion head draws from the global generator; without a seed of its own, so does everything else.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.model.autoregressive_infer_cfg(
                B=self.images,
                label_B=inputs["text"],
                cfg=inputs["cfg"].item(),
                context_position_ids=inputs["context_position_ids"],
                context_mask=inputs["context_mask"],
                **vars(self.settings),
            ).float()


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    """What the extension's kernel computes: normalised in fp32, rounded, then weighted."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return normalised.to(x.dtype) * self.weight.to(x.dtype)
