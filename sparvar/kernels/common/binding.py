"""Packing of argument blocks for the native kernels: 8-byte fields in the order of the C++ structs."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sparvar.kernels.common.checks import fail
from sparvar.kernels.common.native import native_symbol

__all__ = ["DTYPE_CODES", "call", "list_strides", "operand", "rows_contiguous", "shared"]

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NO_OPERAND = (0, 0, 0, 0)
_packers: dict[tuple[type, ...], struct.Struct] = {}


def rows_contiguous(x: Tensor) -> Tensor:
    """Return x with unit stride in the last dimension, copied only if it has another one."""
    return x if x.stride(3) == 1 else x.contiguous()


def operand(x: Tensor | None) -> tuple[int, ...]:
    """Return pointer and strides (batch row, head, token) of [B, H, L, D]; zeros for None."""
    return NO_OPERAND if x is None else (x.data_ptr(), *x.stride()[:3])


def list_strides(x: Tensor) -> tuple[int, int, int]:
    """Return strides (batch row, head, tile) of a list tensor [B', H', G, ...]; an axis of size 1 is broadcast by 0."""
    batch, head, tile = x.stride()[:3]
    return batch if x.shape[0] > 1 else 0, head if x.shape[1] > 1 else 0, tile


def shared(x: Tensor) -> tuple[int, ...]:
    """Return pointer and `list_strides` of a list tensor."""
    return (x.data_ptr(), *list_strides(x))


def call(name: str, fields: tuple[int | float, ...], *, reports: bool = False) -> None:
    """Run the C function `name` on packed fields. `reports`: a pointer for failure details is appended."""
    kinds = tuple(map(type, fields))
    packer = _packers.get(kinds)
    if packer is None:
        codes = "".join("d" if kind is float else "q" for kind in kinds)
        packer = _packers.setdefault(kinds, struct.Struct("@" + codes))
    block = packer.pack(*fields)
    function = native_symbol(name)
    if not reports:
        function(block)
        return
    report = (ctypes.c_int64 * 5)()
    if function(block + struct.pack("@q", ctypes.addressof(report))):
        batch, head, tile, what, value = report
        place = f"batch row {batch}, head {head}, tile {tile}"
        if what == 1:
            raise fail("counts", "be from 1 to the capacity of indices", f"{value} at {place}")
        if what == 2:
            raise fail("indices", "name keys that exist", f"{value} at {place}")
        if what == 3:
            raise fail("indices", "be ascending without duplicates", f"{value} after an entry not below it at {place}")
        if what == 5:
            raise fail("starts", "ascend from 0 to the number of queries", f"{value} behind tile {tile}")
        if what == 6:
            raise fail("alive", "leave every list a key", f"none at {place}")
        raise fail("capacity", "hold every kept column", f"{value} columns at {place}")
