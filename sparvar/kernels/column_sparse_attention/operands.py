"""What the Triton and the Gluon kernel are given alike."""

from __future__ import annotations

from torch import Tensor

from sparvar.kernels.common.binding import list_strides
from sparvar.kernels.common.blocks import operand
from sparvar.kernels.common.columns import Columns


def operands(
    qkv: tuple[Tensor, Tensor, Tensor], out: Tensor, columns: Columns, correction: Tensor | None
) -> tuple[list[Tensor], list[int]]:
    """Return q, k, v, out, correction, indices and counts, and the strides of all but `out`, as the kernels take them.

    Where there is no correction q stands for it: it is not read then.
    """
    (q, *q_strides), (k, *k_strides), (v, *v_strides) = map(operand, qkv)
    extra, *extra_strides = operand(q if correction is None else correction)
    indices, counts = columns.packed()
    strides = [*q_strides, *k_strides, *v_strides, *extra_strides, *list_strides(indices), *list_strides(counts)]
    return [q, k, v, out, extra, indices, counts], strides
