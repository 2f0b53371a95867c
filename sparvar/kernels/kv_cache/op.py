"""Declaration of `kv_acquire` and `kv_extend`: schema, checks, fake and implementation.

Torch ops on slices do the work on every device, so there is one implementation, in `buffers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.library import define
from sparvar.kernels.kv_cache import buffers


def _check_cache(name: str, cache: Tensor, length: int, capacity: int, dim: int) -> None:
    if not 0 <= dim < cache.dim():
        raise fail("dim", f"be a dimension of {name}, 0 to {cache.dim() - 1}", dim)
    if length < 0:
        raise fail("length", "not be negative", length)
    if length > capacity:
        raise fail("capacity", f"be at least {length}, the tokens to hold", capacity)


def _prepare_acquire(previous: Tensor, capacity: int, dim: int) -> tuple[Any, ...]:
    _check_cache("previous", previous, previous.shape[dim] if 0 <= dim < previous.dim() else 0, capacity, dim)
    return previous, capacity, dim


def _acquire(previous: Tensor, capacity: int, dim: int) -> Tensor:
    serial, claim, whole = buffers.acquire(previous, capacity, dim)
    with torch.inference_mode(False):
        token = torch.tensor([serial, claim], dtype=torch.int64, device="cpu")
    token._sparvar_buffer = whole  # type: ignore[attr-defined]  # alive until the token goes
    return token


def _acquire_empty(previous: Tensor, capacity: int, dim: int) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device="cpu")


def _prepare_extend(new: Tensor, token: Tensor, length: int, capacity: int, dim: int) -> tuple[Any, ...]:
    named = token.dtype == torch.int64 and token.dim() == 1 and token.shape[0] == 2
    if not named or token.device.type not in ("cpu", "meta"):
        raise fail(
            "token",
            "be the token of kv_acquire, int64 [2] on the CPU",
            f"{token.dtype} {list(token.shape)} on {token.device}",
        )
    _check_cache("new", new, length, capacity, dim)
    _check_cache("new", new, length + new.shape[dim], capacity, dim)
    return new, token, length, capacity, dim


def _extend(new: Tensor, token: Tensor, length: int, capacity: int, dim: int) -> Tensor:
    serial, claim = token.tolist()
    return buffers.extend(new, serial, claim, length, capacity, dim)


def _extend_empty(new: Tensor, token: Tensor, length: int, capacity: int, dim: int) -> Tensor:
    shape = list(new.shape)
    shape[dim] = length + new.shape[dim]
    return new.new_empty_strided(shape, buffers.row_strides(buffers.buffer_shape(new.shape, capacity, dim)))


_acquire_op: Callable[..., Tensor] = define(
    "kv_acquire(Tensor previous, int capacity, int dim) -> Tensor", _prepare_acquire, _acquire, _acquire_empty
)
_extend_op: Callable[..., Tensor] = define(
    "kv_extend(Tensor new, Tensor token, int length, int capacity, int dim) -> Tensor",
    _prepare_extend,
    _extend,
    _extend_empty,
)


def kv_acquire(previous: Tensor, capacity: int, dim: int) -> Tensor:
    """Return a token, int64 [2] on the CPU, for a buffer that begins with `previous` and has room for `capacity`.

    `dim` is the sequence dimension, 2 for [B, H, L, D], 1 for [B, L, H, D]. No copy if `previous` is the tail of its
    buffer: all that was written to a buffer of this capacity. Otherwise one copy into a new buffer. The token holds
    the buffer; nothing else here does, so buffers go when the caches made of them go.

    Raises `KernelError` on a wrong dimension or a capacity below the length of `previous`.
    """
    return _acquire_op(previous, capacity, dim)


def kv_extend(new: Tensor, token: Tensor, length: int, capacity: int, dim: int) -> Tensor:
    """Return `torch.cat((previous, new), dim)` as a view of the buffer that `token` names.

    `length` is the length of `previous`, `capacity` and `dim` those given to `kv_acquire`. The result has the strides
    of the buffer. A token that was used before still gives the right result, through a copy.

    Raises `KernelError` if the buffer is gone, or shape, dtype, device or capacity do not fit.
    """
    return _extend_op(new, token, length, capacity, dim)
