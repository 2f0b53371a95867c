"""Noise as an input draws what the public models' ``torch.multinomial`` and filters draw."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sparvar.errors import OptionError
from sparvar.models.base import Noise
from sparvar.models.sampling import check_sampling, filtered, pick, smoothed
from sparvar.models.text import pack_rows, varlen_attention


@given(st.integers(1, 40), st.integers(2, 600), st.integers(0, 2**31))
def test_pick_is_multinomial_of_the_same_generator(rows: int, entries: int, seed: int) -> None:
    logits = 3 * torch.randn(2, rows, entries, generator=torch.Generator().manual_seed(seed))
    logits[..., 1:].masked_fill_(logits[..., 1:] < -2, -torch.inf)
    generator = torch.Generator().manual_seed(seed)
    expected = torch.multinomial(logits.softmax(-1).view(-1, entries), 1, replacement=True, generator=generator)
    noise = Noise("noise/1", 1, (2, rows, entries), distribution="exponential")
    found = pick(logits, noise.draw([torch.Generator().manual_seed(seed)]))
    assert torch.equal(found.view(-1, 1), expected)


def test_smoothed_is_gumbel_softmax_of_the_same_generator() -> None:
    logits = torch.randn(2, 5, 30)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        expected = F.gumbel_softmax(logits, tau=0.2, dim=-1)
    noise = Noise("noise/1", 1, (2, 5, 30), distribution="exponential").draw([torch.Generator().manual_seed(4)])
    torch.testing.assert_close(smoothed(logits, noise, 0.2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("distribution", ["uniform", "normal", "exponential"])
def test_noise_is_drawn_from_one_generator_or_from_one_per_image(distribution: str) -> None:
    shared = Noise("noise/2", 2, (3, 4, 5), distribution=distribution)  # type: ignore[arg-type]
    own = Noise("noise/2", 2, (3, 4, 5), distribution=distribution, per_image=True)  # type: ignore[arg-type]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7 + image) for image in range(3)]

    whole, parts = shared.draw(generators()), own.draw(generators())
    draw = {"uniform": torch.rand, "normal": torch.randn}.get(distribution)
    for image, generator in enumerate(generators()):
        expected = draw(4, 5, generator=generator) if draw else torch.empty(4, 5).exponential_(generator=generator)
        assert torch.equal(parts[image], expected)
    assert whole.shape == (3, 4, 5) and not torch.equal(whole[1:], parts[1:])


@given(st.integers(1, 12), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_filtered_keeps_the_likeliest_and_the_nucleus(top_k: int, top_p: float, seed: int) -> None:
    logits = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(seed))
    kept = filtered(logits, top_k, top_p).isfinite()
    for row, keeps in zip(logits[0], kept[0], strict=True):
        order = row.sort(descending=True).indices[:top_k]
        chance = torch.zeros(12).index_copy(0, order, row[order].softmax(-1))
        # Walking down from the likeliest, an entry is kept while the mass before it is below top_p.
        before = chance[order].double().cumsum(0) - chance[order].double()
        sure = (before - top_p).abs() > 1e-6
        assert torch.equal(keeps[order][sure], (before < top_p)[sure])
        assert keeps.sum() >= 1 and not keeps[row < row[order[-1]]].any()


def test_limits_are_checked() -> None:
    with pytest.raises(OptionError, match=r"top_k: must be 0 \(all\) to 9, .*got 10"):
        check_sampling(10, 0.0, 9)
    with pytest.raises(OptionError, match=r"top_p: must be 0 \(all\) to 1, got 1.5"):
        check_sampling(0, 1.5, 9)


def test_packed_text_is_attended_row_by_row() -> None:
    lengths, rows, heads, dim, queries = torch.tensor([3, 1, 5]), 3, 2, 8, 4
    text = torch.randn(rows, 6, 2 * heads * dim)
    packed, bounds = pack_rows(text, lengths)
    assert packed.shape == (18, 2 * heads * dim) and bounds.tolist() == [0, 3, 4, 9] and bounds.dtype == torch.int32
    assert torch.equal(packed[:9], torch.cat([row[:n] for row, n in zip(text, lengths.tolist(), strict=True)]))
    q = torch.randn(rows * queries, heads, dim)
    kv = packed.view(-1, 2, heads, dim)
    kv[9:] = torch.nan
    starts = torch.arange(0, rows * queries + 1, queries, dtype=torch.int32)
    # Keys past the last row are masked, so that they may hold anything finite.
    found = varlen_attention(q, kv.nan_to_num(100.0), starts, bounds, queries, 6, softmax_scale=0.3)
    for row in range(rows):
        mine = q[row * queries : (row + 1) * queries].transpose(0, 1)
        keys, values = kv[bounds[row] : bounds[row + 1]].transpose(0, 2).unbind(1)
        expected = F.scaled_dot_product_attention(mine, keys, values, scale=0.3).transpose(0, 1)
        torch.testing.assert_close(found[row * queries : (row + 1) * queries], expected, rtol=1e-5, atol=1e-5)
