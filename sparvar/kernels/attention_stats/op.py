"""Declaration of `attention_stats`: schema, checks, fake and implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.attention_stats import cpu, portable
from sparvar.kernels.common.checks import attention_output, check_attention
from sparvar.kernels.common.library import ByDevice, define


def _prepare(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Any, ...]:
    check_attention(q, k, v)
    return q, k, v, scale


def _empty(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    row = q.new_empty(q.shape[:3], dtype=torch.float32)
    return attention_output(q), row, torch.empty_like(row)


_run = ByDevice("attention_stats", cpu.run, portable.run)
_op: Callable[..., tuple[Tensor, Tensor, Tensor]] = define(
    "attention_stats(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor, Tensor)",
    _prepare,
    _run,
    _empty,
    _run.gpu,
)


def attention_stats(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return dense attention, its log-sum-exp and its entropy.

    q [B, H, N, D], k and v [B, H, T, D], any strides -> out [B, H, N, D] in the dtype of q (memory [B, N, H, D]),
    lse [B, H, N] and entropy [B, H, N], fp32, in nats. With s = scale * q k^T: lse_i = log sum_j exp(s_ij) and
    entropy_i = -sum_j p_ij log p_ij with p = softmax(s), streamed as in ToProVAR's Algorithm 2 with the term for a
    moving maximum that the paper omits: E <- exp(m - m') (E + (m - m') l), H = log l - E / l.

    Raises `KernelError` on wrong shapes, dtypes or devices, and on inputs that require a gradient.
    """
    return _op(q, k, v, scale)
