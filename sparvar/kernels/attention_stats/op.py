"""Schema, fake, checks and dispatch of `attention_stats`."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparvar.kernels.attention_stats import cpu, portable
from sparvar.kernels.common.checks import attention_output, check_attention, check_inference
from sparvar.kernels.common.gpu import triton_kernels
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native

__all__ = ["attention_stats"]


def _gpu(q: Tensor, *_: object) -> ModuleType | None:
    return triton_kernels("attention_stats", q.device, q.dtype)


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    check_attention(q, k, v)
    check_inference("attention_stats", q, k, v)
    if q.device.type == "cpu" and q.dtype != torch.float64 and use_native():
        return cpu.run(q, k, v, scale)
    if (kernels := _gpu(q)) is not None:
        result: tuple[Tensor, Tensor, Tensor] = kernels.run(q, k, v, scale)
        return result
    return portable.run(q, k, v, scale)


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    check_attention(q, k, v)
    row = q.new_empty(q.shape[:3], dtype=torch.float32)
    return attention_output(q), row, torch.empty_like(row)


_op = define(
    "attention_stats(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor, Tensor)", _run, _fake, _gpu
)


def attention_stats(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return dense attention, its log-sum-exp and its entropy.

    q [B, H, N, D], k and v [B, H, T, D], any strides -> out [B, H, N, D] in the dtype of q (memory [B, N, H, D]),
    lse [B, H, N] and entropy [B, H, N], fp32, in nats. With s = scale * q k^T: lse_i = log sum_j exp(s_ij) and
    entropy_i = -sum_j p_ij log p_ij with p = softmax(s), streamed as in ToProVAR's Algorithm 2 with the term for a
    moving maximum that the paper omits: E <- exp(m - m') (E + (m - m') l), H = log l - E / l.

    Raises `KernelError` on wrong shapes, dtypes or devices, and on inputs that require a gradient.
    """
    result: tuple[Tensor, Tensor, Tensor] = _op(q, k, v, scale)
    return result
