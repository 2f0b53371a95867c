"""Prompts of any length in programs of static shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_rows(text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Padded rows [R, T, C] of ``lengths`` [R] one after the other, as attention over packed sequences takes them.

    Returns:
        Features [R*T, C], of which the first ``lengths.sum()`` count, and the bounds of the rows [R + 1], int32.
    """
    rows, tokens, _ = text.shape
    ends = lengths.cumsum(0)
    starts = ends - lengths
    place = torch.arange(rows * tokens, device=text.device)
    row = (place[:, None] >= ends).sum(dim=1).clamp(max=rows - 1)
    token = (place - starts[row]).clamp(max=tokens - 1)
    return text[row, token], F.pad(ends, (1, 0)).to(torch.int32)


def varlen_attention(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention of packed queries [R*L, H, D], L of each row, over packed keys and values [sum T, 2, H, D].

    Takes the place, and the arguments, of flash-attn's ``flash_attn_varlen_kvpacked_func`` where every row has
    ``max_seqlen_q`` queries. Bounds are values of the program: rows are gathered at ``max_seqlen_k`` keys and masked.
    On the CPU it computes in fp32, as the kernel accumulates, and rounds the result to the operands' dtype.
    """
    rows, heads, dim = cu_seqlens_k.shape[0] - 1, q.shape[1], q.shape[2]
    starts, ends = cu_seqlens_k[:-1].long(), cu_seqlens_k[1:].long()
    place = starts[:, None] + torch.arange(max_seqlen_k, device=q.device)
    keys, values = kv[place.clamp(max=kv.shape[0] - 1)].unbind(2)
    query = q.view(rows, max_seqlen_q, heads, dim)
    if q.device.type == "cpu":
        query, keys, values = query.float(), keys.float(), values.float()
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=(place < ends[:, None])[:, None, None],
        scale=softmax_scale,
    )
    return out.transpose(1, 2).reshape(q.shape).to(q.dtype)
