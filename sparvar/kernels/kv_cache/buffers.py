"""Process-wide registry of cache buffers. It holds storages weakly: a buffer lives as long as a view of it does.

A buffer is append-only. Rows [0, used) never change, so a view of its first rows stays right whatever is appended
behind it, and a second continuation of the same prefix gets a buffer of its own, as with slices in Go.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.torch_compat import storage_address, storage_at
from sparvar.kernels.kv_cache import memory

NO_CLAIM = 0


@dataclass
class _Buffer:
    serial: int
    storage: StorageWeakRef
    shape: tuple[int, ...]  # with the capacity at `dim`
    dim: int
    dtype: torch.dtype
    device: torch.device
    used: int
    claim: int = NO_CLAIM  # the token that may append in place

    def open(self) -> Tensor | None:
        """Return the whole buffer as a tensor, or None if nobody holds it any more."""
        storage = storage_at(self.storage.cdata)
        if storage is None:
            return None
        return _tensor_of(storage, self.dtype, self.device, self.shape, row_strides(self.shape))


_lock = threading.Lock()
_by_storage: dict[int, _Buffer] = {}  # key: address of the StorageImpl, which the weak reference keeps from reuse
_by_serial: dict[int, _Buffer] = {}
_numbers = itertools.count(1)


def row_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of this shape."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def buffer_shape(shape: Sequence[int], capacity: int, dim: int) -> tuple[int, ...]:
    """Return `shape` with `capacity` at `dim`."""
    return (*shape[:dim], capacity, *shape[dim + 1 :])


def _tensor_of(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    device: torch.device,
    shape: Sequence[int],
    strides: Sequence[int],
) -> Tensor:
    # A tensor of its own on the storage, not a view of an input: custom ops may not return those. Never an inference
    # tensor, so that a cache begun under inference_mode can be continued outside it.
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty(0, dtype=dtype, device=device).set_(storage, 0, tuple(shape), tuple(strides))


def _register(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device, used: int
) -> tuple[_Buffer, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        whole = memory.empty(shape, dtype, device)
    buffer = _Buffer(next(_numbers), StorageWeakRef(whole.untyped_storage()), shape, dim, dtype, device, used)
    for address in [address for address, old in _by_storage.items() if old.storage.expired()]:
        del _by_serial[_by_storage.pop(address).serial]
    _by_storage[storage_address(whole.untyped_storage())] = buffer
    _by_serial[buffer.serial] = buffer
    return buffer, whole


def _is_tail(previous: Tensor, buffer: _Buffer, capacity: int, dim: int) -> bool:
    return (
        buffer.claim == NO_CLAIM
        and buffer.dim == dim
        and buffer.used == previous.shape[dim]
        and buffer.shape == buffer_shape(previous.shape, capacity, dim)
        and buffer.dtype == previous.dtype
        and previous.storage_offset() == 0
        and previous.stride() == row_strides(buffer.shape)
    )


def acquire(previous: Tensor, capacity: int, dim: int) -> tuple[int, int, Tensor]:
    """Return (serial, claim, buffer) of a buffer of `capacity` whose first rows are `previous`.

    It is the buffer that `previous` is the tail of, if there is one nobody else is about to continue; otherwise a
    new one with a copy. The caller keeps the buffer alive until `extend`.
    """
    with _lock:
        buffer = _by_storage.get(storage_address(previous.untyped_storage()))
        whole = buffer.open() if buffer is not None and _is_tail(previous, buffer, capacity, dim) else None
        fresh = buffer is None or whole is None
        if buffer is None or whole is None:
            shape = buffer_shape(previous.shape, capacity, dim)
            buffer, whole = _register(shape, dim, previous.dtype, previous.device, previous.shape[dim])
        buffer.claim = claim = next(_numbers)
    if fresh:
        with torch.no_grad():
            whole.narrow(dim, 0, previous.shape[dim]).copy_(previous)
    return buffer.serial, claim, whole


def extend(new: Tensor, serial: int, claim: int, length: int, capacity: int, dim: int) -> Tensor:
    """Append `new` behind the first `length` rows of a buffer and return those rows and it as one tensor.

    In place if `claim` still holds the end of the buffer; else (the token was used before) into a new buffer.
    """
    with _lock:
        buffer = _by_serial.get(serial)
        whole = None if buffer is None else buffer.open()
        if buffer is None or whole is None:
            raise fail(
                "token",
                "name a buffer that is still held",
                f"buffer {serial}, which is gone",
                "keep the token of kv_acquire until kv_extend has used it",
            )
        shape = buffer_shape(new.shape, capacity, dim)
        if buffer.shape != shape or buffer.dim != dim:
            raise fail(
                "new",
                f"fit a buffer {list(buffer.shape)} that grows in dimension {buffer.dim}",
                f"{list(new.shape)} with capacity {capacity} in dimension {dim}",
            )
        if buffer.dtype != new.dtype or buffer.device != new.device:
            raise fail("new", f"be {buffer.dtype} on {buffer.device} as the cache", f"{new.dtype} on {new.device}")
        if length > buffer.used:
            raise fail("length", f"be at most the {buffer.used} rows that the buffer holds", length)
        source = whole
        if buffer.claim == claim and buffer.used == length:
            buffer.used += new.shape[dim]
            buffer.claim = NO_CLAIM
        else:
            _, whole = _register(shape, dim, new.dtype, new.device, length + new.shape[dim])
    # Rows from `length` on belong to this call alone, so the copies need no lock.
    with torch.no_grad():
        if whole is not source:
            whole.narrow(dim, 0, length).copy_(source.narrow(dim, 0, length))
        whole.narrow(dim, length, new.shape[dim]).copy_(new)
    grown = list(shape)
    grown[dim] = length + new.shape[dim]
    return _tensor_of(whole.untyped_storage(), new.dtype, new.device, grown, row_strides(shape))


def live_buffers() -> int:
    """Return how many buffers are alive, for tests and diagnosis."""
    with _lock:
        return sum(not buffer.storage.expired() for buffer in _by_storage.values())
