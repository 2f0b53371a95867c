"""Declaration of `row_mlp`, schema, checks and fake, and its loop: torch's own GEMM, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.library import define
from sparvar.kernels.common.native import use_native
from sparvar.kernels.row_mlp import cpu
from sparvar.kernels.row_mlp.reference import ACTIVATIONS

CHUNK_BYTES = 4 << 20
"""Hidden activations of one chunk: they stay in the second-level caches, and malloc keeps a block of this size."""


def chunk_rows(hidden: int, itemsize: int) -> int:
    """Rows whose hidden activations take about `CHUNK_BYTES`, at least 256: fewer would starve the GEMM."""
    return max(256, CHUNK_BYTES // (hidden * itemsize))


def _prepare(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, name: str
) -> tuple[Any, ...]:
    if name not in ACTIVATIONS:
        raise fail("activation", f"be one of {', '.join(ACTIVATIONS)}", repr(name))
    if x.dim() < 2:
        raise fail("x", "have at least 2 dimensions [..., C]", list(x.shape))
    if up.dim() != 2 or up.shape[1] != x.shape[-1]:
        raise fail("up", f"be [F, C] with C = {x.shape[-1]} as in x", list(up.shape))
    if down.dim() != 2 or down.shape[1] != up.shape[0]:
        raise fail("down", f"be [C', F] with F = {up.shape[0]} as in up", list(down.shape))
    for label, bias, weight in (("up_bias", up_bias, up), ("down_bias", down_bias, down)):
        if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
            raise fail(label, f"be [{weight.shape[0]}]", list(bias.shape))
    dtype, device = x.dtype, x.device
    for label, part in (("up", up), ("up_bias", up_bias), ("down", down), ("down_bias", down_bias)):
        if part is not None and (part.dtype != dtype or part.device != device):
            raise fail(label, f"be {dtype} on {device} as x", f"{part.dtype} on {part.device}")
    return x, up, up_bias, down, down_bias, name


def _activate_in_place(name: str, hidden: Tensor) -> None:
    if name.startswith("gelu"):
        torch.ops.aten.gelu_(hidden, approximate="tanh" if name == "gelu_tanh" else "none")
    elif name == "silu":
        torch.nn.functional.silu(hidden, inplace=True)
    else:
        hidden.relu_()


def _linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _run(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, name: str) -> Tensor:
    fused = name in cpu.FUSED and x.device.type == "cpu" and x.dtype == torch.float32 and use_native()
    bias = None if up_bias is None else up_bias.contiguous()
    with torch.no_grad():
        flat = x.reshape(-1, x.shape[-1])
        out = x.new_empty((*x.shape[:-1], down.shape[0]))
        rows, flat_out = flat.shape[0], out.view(-1, down.shape[0])
        step = chunk_rows(up.shape[0], x.element_size())
        hidden = x.new_empty((min(step, rows), up.shape[0]))
        for start in range(0, rows, step):
            part = hidden[: min(step, rows - start)]
            _linear_into(part, flat[start : start + step], up, None if fused else bias)
            if fused:
                cpu.bias_activation(name, part, bias)
            else:
                _activate_in_place(name, part)
            _linear_into(flat_out[start : start + step], part, down, down_bias)
    return out


def _empty(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], down.shape[0]))


_op: Callable[..., Tensor] = define(
    "row_mlp(Tensor x, Tensor up, Tensor? up_bias, Tensor down, Tensor? down_bias, str activation) -> Tensor",
    _prepare,
    _run,
    _empty,
)


def row_mlp(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str
) -> Tensor:
    """Return `linear(activation(linear(x, up, up_bias)), down, down_bias)` without ever holding all hidden values.

    x [..., C], up [F, C], down [C', F] -> [..., C'], contiguous. `activation` is `gelu`, `gelu_tanh`, `silu` or
    `relu`. Chunks of rows whose hidden values take 4 MiB go through both layers one after the other. Every row is
    computed as torch computes it in the whole, up to the order in which the GEMM library sums.

    Raises `KernelError` on wrong shapes, dtypes, devices or an unknown activation, and on inputs that require a
    gradient.
    """
    return _op(x, up, up_bias, down, down_bias, activation)
