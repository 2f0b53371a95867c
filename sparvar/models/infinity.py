"""Infinity (FoundationVision/Infinity), text to image, bit by bit."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparvar.errors import CaptureError, OptionError, message
from sparvar.models.base import Call, Family, Input, State
from sparvar.models.call_arguments import check_arguments, generator_of
from sparvar.models.sampling import check_sampling, filtered, pick, schedule_noise
from sparvar.models.text import pack_rows, varlen_attention

VARLEN = "flash_attn_varlen_kvpacked_func"


@dataclass(frozen=True)
class InfinitySettings:
    """What is fixed for all generations of an `InfinityFamily`.

    Attributes:
        vae: the tokenizer, which the model does not hold.
        scale_schedule: (1, h, w) of every scale, one of those that the model has positions for.
        cfg_list, tau_list: guidance and temperature per scale, fixed; None makes each an input, one for all scales.
        top_k, top_p: limits of sampling; 0 takes the model's own.
        cfg_insertion_layer: where guidance is applied: 0 to the logits, -n to the output of the n-th last block.
        negative: negative prompts are an input; otherwise guidance is away from the model's own empty text.
        text_tokens: length that prompts are padded to; the model's longest if None.
    """

    vae: Any
    scale_schedule: Sequence[Sequence[int]]
    cfg_list: Sequence[float] | None = None
    tau_list: Sequence[float] | None = None
    top_k: int = 900
    top_p: float = 0.97
    cfg_insertion_layer: Sequence[int] = (0,)
    negative: bool = False
    text_tokens: int | None = None


class InfinityFamily(Family):
    """``Infinity`` with bit labels, as the repository's ``autoregressive_infer_cfg`` runs it in inference mode.

    Prompts come padded to ``text_tokens`` with their lengths, so that one program serves all.
    """

    name = "infinity"
    model_class = "Infinity"
    settings_class = InfinitySettings
    needs = (
        "add_lvl_embeding_only_first_block", "apply_spatial_patchify", "autoregressive_infer_cfg", "block_chunks",
        "cfg_uncond", "Ct5", "d_vae", "get_logits", "lvl_embed", "norm0_ve", "num_blocks_in_a_chunk", "pos_start",
        "rope2d_freqs_grid", "shared_ada_lin", "text_maxlen", "text_norm", "text_proj_for_ca", "text_proj_for_sos.ca",
        "top_k", "top_p", "unregistered_blocks", "use_bit_label", "use_flex_attn", "word_embed",
    )  # fmt: skip
    shared: ClassVar[tuple[str, ...]] = ("codes",)
    block_values: ClassVar[dict[str, str]] = {
        "L['x']": "x",
        "L['cond_BD']": "modulation",
        "L['ca_kv'][0]": "text",
        "L['ca_kv'][1]": "bounds",
    }

    def __init__(self, model: nn.Module, images: int, settings: InfinitySettings) -> None:
        super().__init__(model, images)
        self.vae, self.negative = settings.vae, settings.negative
        self.require(self.vae, "vae", ("decode", "quantizer.lfq.indices_to_codes", "quantizer.z_interplote_up"))
        if self.model.use_flex_attn or not self.model.use_bit_label:
            got = f"use_bit_label={self.model.use_bit_label}, use_flex_attn={self.model.use_flex_attn}"
            raise CaptureError(message("infinity family, Infinity", "be built with bit labels and without flex", got))
        self.roots = {"model": model, "vae": self.vae}
        self._set_schedule(settings.scale_schedule)
        self.cfg_list = self._per_scale("cfg_list", settings.cfg_list)
        self.tau_list = self._per_scale("tau_list", settings.tau_list)
        self.guided = self.cfg_list is None or any(cfg != 1 for cfg in self.cfg_list)
        self.rows = 2 * images if self.guided else images
        self.top_k, self.top_p = settings.top_k or self.model.top_k, settings.top_p or self.model.top_p
        check_sampling(min(self.top_k, 2), self.top_p, 2)
        self._set_insertion(settings.cfg_insertion_layer)
        self.text_tokens = self.model.text_maxlen if settings.text_tokens is None else settings.text_tokens
        if not 1 <= self.text_tokens <= self.model.text_maxlen:
            must = f"be 1 to {self.model.text_maxlen}, the longest text of the model"
            raise OptionError(message("text_tokens", must, self.text_tokens))
        self._set_inputs()
        self.noise = schedule_noise([h * w * self.model.d_vae for h, w in self.schedule], images, 2)

    def _set_schedule(self, given: Sequence[Sequence[int]]) -> None:
        self.scale_schedule = [tuple(grid) for grid in given]
        known = self.model.rope2d_freqs_grid
        if str(tuple(self.scale_schedule)) not in known:
            must = f"be (1, h, w) of every scale, one of the {len(known)} schedules that the model has positions for"
            raise OptionError(message("scale_schedule", must, self.scale_schedule))
        self.schedule = tuple((h, w) for _, h, w in self.scale_schedule)
        factor = 2 if self.model.apply_spatial_patchify else 1
        self.vae_schedule = [(1, factor * h, factor * w) for h, w in self.schedule]

    def _per_scale(self, name: str, values: Sequence[float] | None) -> list[float] | None:
        if values is not None and len(values) != len(self.schedule):
            raise OptionError(message(name, f"have {len(self.schedule)} numbers, one per scale", len(values)))
        return None if values is None else [float(value) for value in values]

    def _set_insertion(self, layers: Sequence[int]) -> None:
        if not layers or not all(-self.layers < layer <= 0 for layer in layers):
            must = f"be 0 (logits) or -1 to {1 - self.layers} (blocks, from the last)"
            raise OptionError(message("cfg_insertion_layer", must, list(layers)))
        self.cfg_insertion_layer = list(layers)
        self.guided_layers = {self.layers + layer for layer in layers if layer < 0}

    def _set_inputs(self) -> None:
        texts = ("text", "negative") if self.negative else ("text",)
        shape = (self.images, self.text_tokens, self.model.Ct5)
        inputs: list[Input] = []
        for text in texts:
            inputs += [Input(text, "tensor", shape, "float32")]
            inputs += [Input(f"{text}_lengths", "tensor", (self.images,), "int64")]
        if self.cfg_list is None:
            inputs.append(Input("cfg", "number", (), "float64", default=3.0))
        if self.tau_list is None:
            inputs.append(Input("tau", "number", (), "float64", default=0.5))
        self.inputs = tuple(inputs)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.unregistered_blocks)

    def call_block(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor:
        return self.model.unregistered_blocks[layer](
            x=x,
            cond_BD=state["modulation"],
            ca_kv=(state["text"], state["bounds"], self.text_tokens),
            attn_bias_or_two_vector=None,
            attn_fn=None,
            scale_schedule=self.scale_schedule,
            rope2d_freqs_grid=self.model.rope2d_freqs_grid,
            scale_ind=scale - 1,
        )

    def between(self, layer: int, x: Tensor, state: State, scale: int) -> Tensor | None:
        cfg, changed = self._number("cfg", state, scale), False
        if layer in self.guided_layers and self._is_guided(scale):
            given, free = x.chunk(2)
            x, changed = (cfg * given + (1 - cfg) * free).repeat(2, 1, 1), True
        ends_chunk = (layer + 1) % self.model.num_blocks_in_a_chunk == 0 and layer + 1 < self.layers
        if ends_chunk and not self.model.add_lvl_embeding_only_first_block:
            x, changed = self._with_level(x, scale), True
        return x if changed else None

    def caching(self, enable: bool) -> None:
        for block in self.model.unregistered_blocks:
            block.sa.kv_caching(enable)

    @contextmanager
    def functional(self) -> Iterator[None]:
        """The cross-attention's kernel as plain attention, fused norms as they are written, and Python's own sums."""
        cross = type(self.model.text_proj_for_sos.ca).forward
        names = cross.__globals__
        if VARLEN not in names:
            raise CaptureError(message("infinity family, cross-attention", f"call {VARLEN}", cross.__qualname__))
        replaced = {VARLEN: varlen_attention, "np": _NumPy()}
        kept = {name: names[name] for name in replaced if name in names}
        fused = [module for module in self.model.modules() if getattr(module, "fused_norm_func", None) is not None]
        compiled = [module.fused_norm_func for module in fused]
        names.update((name, replaced[name]) for name in kept)
        for module, function in zip(fused, compiled, strict=True):
            module.fused_norm_func = inspect.unwrap(function)
        try:
            yield
        finally:
            names.update(kept)
            for module, function in zip(fused, compiled, strict=True):
                module.fused_norm_func = function

    def begin(self, inputs: dict[str, Tensor]) -> State:
        model, text, lengths = self.model, inputs["text"], inputs["text_lengths"]
        if self.guided:
            free = inputs["negative"] if self.negative else model.cfg_uncond[: self.text_tokens].expand_as(text)
            free_lengths = inputs["negative_lengths"] if self.negative else lengths
            text, lengths = torch.cat((text, free)), torch.cat((lengths, free_lengths))
        packed, bounds = pack_rows(text, lengths)
        packed = model.text_norm(packed)
        condition = model.text_proj_for_sos((packed, bounds, self.text_tokens))
        height, width = self.vae_schedule[-1][1:]
        channels = model.d_vae // (4 if model.apply_spatial_patchify else 1)
        state = {
            "x": self._with_level(condition.unsqueeze(1) + model.pos_start, 1),
            "condition": condition,
            "modulation": model.shared_ada_lin(condition.float()).float().contiguous(),
            "text": model.text_proj_for_ca(packed),
            "bounds": bounds,
            "codes": torch.zeros(self.images, channels, 1, height, width, device=text.device),
        }
        return {**state, **{name: inputs[name].clone() for name in ("cfg", "tau") if name in inputs}}

    def _with_level(self, x: Tensor, scale: int) -> Tensor:
        return (x + self.model.lvl_embed.weight[scale - 1]).to(x.dtype)

    def _number(self, name: str, state: State, scale: int) -> Any:
        """``cfg`` or ``tau`` of a scale: fixed, or the input."""
        fixed = self.cfg_list if name == "cfg" else self.tau_list
        return state[name] if fixed is None else fixed[scale - 1]

    def _is_guided(self, scale: int) -> bool:
        return self.cfg_list is None or self.cfg_list[scale - 1] != 1

    def leave(self, scale: int, state: State, noise: dict[str, Tensor]) -> State:
        model, vae, images, (h, w) = self.model, self.vae, self.images, self.schedule[scale - 1]
        x, condition = state["x"], state["condition"]
        sharpness = 1 / self._number("tau", state, scale)
        if 0 in self.cfg_insertion_layer and self._is_guided(scale):
            cfg = self._number("cfg", state, scale)
            given, free = model.get_logits(x, condition).mul(sharpness).chunk(2)
            logits = cfg * given + (1 - cfg) * free
        else:
            logits = model.get_logits(x[:images], condition[:images]).mul(sharpness)
        logits = filtered(logits.reshape(images, -1, 2), min(self.top_k, 2), self.top_p)
        bits = pick(logits, noise[f"noise/{scale}.draw"]).float().reshape(images, h, w, -1)
        if model.apply_spatial_patchify:
            bits = F.pixel_shuffle(bits.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        codes = vae.quantizer.lfq.indices_to_codes(bits.unsqueeze(1), label_type="bit_label")
        if scale == len(self.schedule):
            return {"codes": state["codes"] + codes}
        up = vae.quantizer.z_interplote_up
        total = state["codes"] + F.interpolate(codes, size=self.vae_schedule[-1], mode=up)
        return {"codes": total, "x": self.enter(scale + 1, {"codes": total})}

    def enter(self, scale: int, state: State) -> Tensor:
        model, up = self.model, self.vae.quantizer.z_interplote_up
        following = F.interpolate(state["codes"], size=self.vae_schedule[scale - 1], mode=up).squeeze(-3)
        if model.apply_spatial_patchify:
            following = F.pixel_unshuffle(following, 2)
        tokens = model.word_embed(model.norm0_ve(following.flatten(2).transpose(1, 2)))
        return self._with_level(tokens.repeat(self.rows // self.images, 1, 1), scale)

    @classmethod
    def of_call(cls, model: nn.Module, arguments: Mapping[str, Any]) -> Call:
        """See `Family.of_call`. Of what the method returns, the images are given; its lists of codes are empty."""
        names = ("vae", "scale_schedule", "top_k", "top_p", "cfg_insertion_layer")
        texts = ("label_B_or_BLT", "negative_label_B_or_BLT")
        network: Any = model
        # What the method takes and never looks at, or looks at for the lists alone.
        unread = ("force_gt_Bhw", "cfg_sc", "ratio_Bl1", "gumbel", "norm_cfg", "cfg_exp_k", "softmax_merge_topk",
                  "gt_ls_Bl", "save_img_path", "sampling_per_bits", "returns_vemb")  # fmt: skip
        mapped = ("B", "g_seed", "cfg_list", "tau_list", *names, *texts, *unread)
        fixed = {"vae_type": network.d_vae, "ret_img": True, "trunk_scale": 1000, "gt_leak": 0, "inference_mode": True}
        check_arguments(cls.name, arguments, mapped, fixed)
        images, scales = arguments["B"], len(arguments["scale_schedule"])
        prompts = [_padded(arguments[name]) for name in texts if arguments[name]]
        longest = max(text.shape[1] for text, _ in prompts)
        settings = InfinitySettings(
            cfg_list=arguments["cfg_list"][:scales],
            tau_list=arguments["tau_list"][:scales],
            negative=len(prompts) == 2,
            text_tokens=longest,
            **{name: arguments[name] for name in names},
        )
        family = cls(model, images, settings)
        inputs: State = {}
        for name, (text, lengths) in zip(("text", "negative"), prompts, strict=False):
            inputs[name] = F.pad(text, (0, 0, 0, longest - text.shape[1]))
            inputs[f"{name}_lengths"] = lengths
        generator = generator_of(model, arguments["g_seed"])
        return Call(family, inputs, lambda noise: noise.draw([generator]), lambda drawn: ([], [], _bytes(drawn)))

    def decode(self, state: State) -> Tensor:
        # The layout in which the model's own sum of codes reaches the decoder: another rounds differently.
        codes = state["codes"].squeeze(-3).contiguous(memory_format=torch.channels_last)
        return ((self.vae.decode(codes) + 1) / 2).float()

    def longest(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        full = {name: torch.full_like(each, self.text_tokens) for name, each in inputs.items() if "lengths" in name}
        return {**inputs, **full}

    def generate(self, inputs: dict[str, Tensor], seed: int) -> Tensor:
        scales = len(self.schedule)
        kept = _Kept(self.vae)
        self.model.autoregressive_infer_cfg(
            vae=kept,
            scale_schedule=self.scale_schedule,
            label_B_or_BLT=_packed(inputs["text"], inputs["text_lengths"]),
            B=self.images,
            negative_label_B_or_BLT=(
                _packed(inputs["negative"], inputs["negative_lengths"]) if self.negative else None
            ),
            g_seed=seed,
            cfg_list=[inputs["cfg"].item()] * scales if self.cfg_list is None else self.cfg_list,
            tau_list=[inputs["tau"].item()] * scales if self.tau_list is None else self.tau_list,
            top_k=self.top_k,
            top_p=self.top_p,
            returns_vemb=1,
            cfg_insertion_layer=self.cfg_insertion_layer,
            vae_type=self.model.d_vae,
            ret_img=True,
            inference_mode=True,
        )
        return ((kept.image + 1) / 2).float()


class _NumPy:
    """NumPy, but sums of Python's integers stay such: Dynamo cannot slice with what it makes of NumPy's."""

    sum = staticmethod(sum)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _Kept:
    """A tokenizer that keeps the image which it decodes, before the model rounds it to bytes."""

    image: Tensor

    def __init__(self, vae: Any) -> None:
        self._vae, self.quantizer = vae, vae.quantizer

    def decode(self, codes: Tensor) -> Tensor:
        self.image = self._vae.decode(codes)
        return self.image


def _bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as the repository returns them: bytes [images, H, W, 3], blue first."""
    return images.permute(0, 2, 3, 1).mul(255).to(torch.uint8).flip(dims=(3,))


def _padded(prompt: tuple[Tensor, list[int], Tensor, int]) -> tuple[Tensor, Tensor]:
    """Prompts as the repository's ``encode_prompt`` returns them, padded [images, T, C], and their lengths."""
    rows, sizes, _, longest = prompt
    parts = [F.pad(part, (0, 0, 0, longest - len(part))) for part in rows.split(list(sizes))]
    return torch.stack(parts), torch.tensor(sizes, device=rows.device)


def _packed(text: Tensor, lengths: Tensor) -> tuple[Tensor, list[int], Tensor, int]:
    """Padded prompts as the repository's ``encode_prompt`` returns them."""
    sizes = lengths.tolist()
    rows = torch.cat([row[:size] for row, size in zip(text, sizes, strict=True)])
    bounds = F.pad(lengths.to(torch.int32).cumsum(0), (1, 0)).to(torch.int32)
    return rows, sizes, bounds, max(sizes)
