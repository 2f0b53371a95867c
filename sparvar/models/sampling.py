"""Drawing code book entries from logits with the noise given, as the public models draw them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparvar.errors import OptionError, message
from sparvar.models.base import Noise


def check_sampling(top_k: int, top_p: float, entries: int) -> None:
    """Raises :class:`OptionError` unless 0 <= top_k <= entries and 0 <= top_p <= 1."""
    if not 0 <= top_k <= entries:
        raise OptionError(message("top_k", f"be 0 (all) to {entries}, the entries of the code book", top_k))
    if not 0 <= top_p <= 1:
        raise OptionError(message("top_p", "be 0 (all) to 1", top_p))


def sampling_noise(scale: int, images: int, tokens: int, entries: int, smooth: bool = False) -> tuple[Noise, ...]:
    """Noise for :func:`draw_entries`, in the order of the public models: ``.draw``, and ``.smooth`` where asked."""
    parts = ("draw", "smooth") if smooth else ("draw",)
    shape = (images, tokens, entries)
    return tuple(Noise(f"noise/{scale}.{part}", scale, shape, distribution="exponential") for part in parts)


def schedule_noise(
    tokens: Sequence[int], images: int, entries: int, smooth: bool = False, first: int = 1
) -> tuple[Noise, ...]:
    """:func:`sampling_noise` of all scales from ``first`` on, which have so many ``tokens``."""
    scales = enumerate(tokens, start=first)
    return tuple(noise for scale, count in scales for noise in sampling_noise(scale, images, count, entries, smooth))


def guided(logits: Tensor, strength: Tensor) -> Tensor:
    """Logits [2B, L, V], those without a class or text in the second half, with guidance away from these: [B, L, V]."""
    given, free = logits.chunk(2)
    return (1 + strength) * given - strength * free


def filtered(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Logits [B, L, V] with -inf outside the ``top_k`` largest and outside the nucleus of mass ``top_p``; 0: no limit.

    The nucleus (arXiv 1904.09751) leaves out the least likely entries whose mass together is at most 1 - top_p.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0:
        ascending, entry = logits.sort(dim=-1)
        mass = ascending.softmax(dim=-1).cumsum(dim=-1)
        largest = torch.arange(mass.shape[-1], device=mass.device) == mass.shape[-1] - 1
        leave = (mass <= 1 - top_p) & ~largest
        logits = logits.masked_fill(torch.zeros_like(leave).scatter(-1, entry, leave), -torch.inf)
    return logits


def pick(logits: Tensor, noise: Tensor) -> Tensor:
    """Entries [B, L] drawn from softmax(logits) [B, L, V] with exponential noise of the same shape.

    The entry with the largest p / q for q ~ Exp(1) has distribution p; it is what ``torch.multinomial(p, 1)`` returns
    on the CPU for the same numbers.
    """
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def smoothed(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Gumbel-softmax weights [B, L, V] (arXiv 1611.01144), from exponential noise, whose -log is Gumbel's."""
    return ((logits - noise.log()) / temperature).softmax(dim=-1)


def draw_entries(
    logits: Tensor, book: Tensor, noise: dict[str, Tensor], scale: int, ratio: float, more_smooth: bool
) -> tuple[Tensor, Tensor]:
    """Entries drawn from filtered logits [B, L, V] with the scale's :func:`sampling_noise`.

    Args:
        book: the code book [V, D].
        ratio: how far the generation is, 0 to 1; with it smoothing gets sharper.
        more_smooth: means of the code book in place of entries.

    Returns:
        Indices [B, L] and features [B, L, D].
    """
    entry = pick(logits, noise[f"noise/{scale}.draw"])
    if not more_smooth:
        return entry, book[entry]
    temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
    return entry, smoothed(logits.mul(1 + ratio), noise[f"noise/{scale}.smooth"], temperature) @ book.unsqueeze(0)
