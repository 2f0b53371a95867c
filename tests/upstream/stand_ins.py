"""Stand-ins for packages that the public models import: on a CPU, or where only a name is needed.

They are ours, small, and compute what the packages document with plain PyTorch. FlashAttention's stand-in keeps the
structure that Dynamo meets in the real package (a Python function, an autograd function, an opaque operator), because
that is what the capture has to recognise.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


@torch.library.custom_op("flash_attn::_flash_attn_forward", mutates_args=())
def _flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Attention over [B, N, H, D] and its log-sum-exp [B, H, N]; half precision only, as the package."""
    if q.dtype not in _HALF or k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    queries, keys, values = (x.transpose(1, 2).float() for x in (q, k, v))
    scores = queries @ keys.transpose(-2, -1) * softmax_scale
    out = F.scaled_dot_product_attention(queries, keys, values, scale=softmax_scale)
    return out.to(q.dtype).transpose(1, 2).contiguous(), scores.logsumexp(-1)


@_flash_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q).contiguous(), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
        softcap: float,
    ) -> Tensor:
        out, _ = torch.ops.flash_attn._flash_attn_forward(
            q, k, v, dropout_p, softmax_scale, causal, window_size[0], window_size[1], softcap
        )
        return out


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """Attention over [B, N, H, D]."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    return _FlashAttention.apply(q, k, v, float(dropout_p), scale, causal, window_size, softcap)


@torch.library.custom_op("flash_attn::_flash_attn_varlen_forward", mutates_args=())
def _varlen_forward(q: Tensor, kv: Tensor, starts_q: Tensor, starts_k: Tensor, softmax_scale: float) -> Tensor:
    out = torch.empty_like(q)
    bounds_q, bounds_k = starts_q.tolist(), starts_k.tolist()
    for row in range(len(bounds_q) - 1):
        mine = slice(bounds_q[row], bounds_q[row + 1])
        keys, values = kv[bounds_k[row] : bounds_k[row + 1]].float().unbind(1)
        rows = F.scaled_dot_product_attention(
            q[mine].float().transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), scale=softmax_scale
        )
        out[mine] = rows.transpose(0, 1).to(q.dtype)
    return out


@_varlen_forward.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention of packed queries [sum N, H, D] over packed keys and values [sum T, 2, H, D], sequence by sequence."""
    if q.dtype not in _HALF or kv.dtype != q.dtype:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    return torch.ops.flash_attn._flash_attn_varlen_forward(q, kv, cu_seqlens_q, cu_seqlens_k, scale)


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention over [B, N, H, D], as xformers.ops has it."""
    operands = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*operands, attn_mask=attn_bias, dropout_p=p, scale=scale).transpose(1, 2)


@torch.compiler.disable
def _rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float, quantise: bool) -> None:
    """HART's fused kernel; Dynamo cannot look into a compiled extension, nor into this."""
    wide = x.float()
    out.copy_(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight)


class _DropPath(nn.Module):
    """No path is dropped at inference."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return x


class _HubMixin:
    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    module.__path__ = []  # a package: its parts are imported by their own names
    return module


def flash_attn_modules() -> dict[str, types.ModuleType]:
    functions = {
        "flash_attn_func": flash_attn_func,
        "flash_attn_varlen_kvpacked_func": flash_attn_varlen_kvpacked_func,
    }
    return {"flash_attn": _module("flash_attn", **functions)}


def timm_modules() -> dict[str, types.ModuleType]:
    def register_model(function: Any) -> Any:
        return function

    def drop_path(x: Tensor, *_: Any) -> Tensor:
        return x

    layers = _module("timm.models.layers", DropPath=_DropPath, drop_path=drop_path)
    return {
        "timm": _module("timm"),
        "timm.models": _module("timm.models", register_model=register_model, layers=layers),
        "timm.models.layers": layers,
        "timm.loss": _module("timm.loss", SoftTargetCrossEntropy=nn.CrossEntropyLoss),
    }


def torchvision_modules() -> dict[str, types.ModuleType]:
    transforms = _module("torchvision.transforms")
    return {"torchvision": _module("torchvision", transforms=transforms), "torchvision.transforms": transforms}


def hub_modules() -> dict[str, types.ModuleType]:
    return {"huggingface_hub": _module("huggingface_hub", PyTorchModelHubMixin=_HubMixin)}


def hart_backend_modules() -> dict[str, types.ModuleType]:
    kernels = _module("hart_backend.fused_kernels", rms_norm=_rms_norm)
    return {"hart_backend": _module("hart_backend", fused_kernels=kernels), "hart_backend.fused_kernels": kernels}


def scipy_modules() -> dict[str, types.ModuleType]:
    """HART builds a distribution that only training draws from."""
    stats = _module("scipy.stats", truncnorm=lambda *_, **__: None)
    return {"scipy": _module("scipy", stats=stats), "scipy.stats": stats}


def empty_modules(*names: str) -> dict[str, types.ModuleType]:
    return {name: _module(name) for name in names}
