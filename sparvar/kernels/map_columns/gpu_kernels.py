"""The Triton kernels of `map_columns`: a byte for every key and source tile, then compaction to lists.

A byte is 1 where a key is absent. `mark_kernel` stores 0 at the targets of every kept source key (any order, the same
value, so the result is deterministic). `gather_kernel` unites that row with the fixed keys of one target tile and
writes its list. Where several target tiles have the same source tile, `compact_kernel` writes one list for each source
tile instead, and `spread_kernel` copies it for each target tile, the keys around its window compacted anew.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mark_kernel(
    indices: tl.tensor, counts: tl.tensor, spans: tl.tensor, absent: tl.tensor, valid: tl.tensor,
    index_batch: tl.tensor, index_head: tl.tensor, index_tile: tl.tensor, count_batch: tl.tensor,
    count_head: tl.tensor, count_tile: tl.tensor, heads: tl.tensor, tiles: tl.tensor, capacity: tl.tensor,
    source_total: tl.tensor, row_bytes: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Store 0 in `absent` [rows, row_bytes] at the span of each kept key, or in `valid` where a value is bad."""
    row = tl.program_id(0)
    tile = row % tiles
    head = row // tiles % heads
    batch = (row // tiles // heads).to(tl.int64)
    count = tl.load(counts + batch * count_batch + head * count_head + tile * count_tile)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = slot < tl.minimum(count, capacity)
    place = batch * index_batch + head.to(tl.int64) * index_head + tile.to(tl.int64) * index_tile
    key = tl.load(indices + place + slot, mask=used, other=0)
    exists = used & (key >= 0) & (key < source_total)
    wrong = tl.max((used ^ exists).to(tl.int32), axis=0)
    tl.store(valid, 0, mask=(count < 1) | (count > capacity) | (wrong != 0))

    span = spans + tl.where(exists, key, 0) * 4
    first = tl.load(span, mask=exists, other=0)
    rows = tl.load(span + 1, mask=exists, other=0)
    columns = tl.load(span + 2, mask=exists, other=0)
    step = tl.load(span + 3, mask=exists, other=0)
    target = absent + row.to(tl.int64) * row_bytes + first
    for dy in range(tl.max(rows, axis=0)):
        for dx in range(tl.max(columns, axis=0)):
            tl.store(target + dy * step + dx, 0, mask=(dy < rows) & (dx < columns))


@triton.jit
def _tile_and_source(
    row: tl.tensor, sources: tl.tensor, tiles: tl.tensor, source_tiles: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Return the tile of a row of target tiles of all heads, and the row of its source tile."""
    tile = row % tiles
    return tile, (row // tiles).to(tl.int64) * source_tiles + tl.load(sources + tile)


@triton.jit
def _kept(absent: tl.tensor, fixed: tl.tensor, word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return words with a byte of 1 for every kept key, and with the number of the first i + 1 of them in byte i."""
    kept = (tl.load(absent + word) & tl.load(fixed + word)) ^ 0x01010101
    return kept, kept * 0x01010101


@triton.jit
def _write(
    target: tl.tensor, capacity: tl.tensor, key: tl.tensor, kept: tl.tensor, upto: tl.tensor, end: tl.tensor
) -> None:
    """Store the kept keys of words whose first key is `key` and whose last kept one goes before slot `end`."""
    # No list is longer by the geometry of capacities; if one were, the next tile's list must stay whole.
    kept = tl.where(end <= capacity, kept, 0)
    before = end - (upto >> 24) - 1
    for i in tl.static_range(4):
        tl.store(target + before + ((upto >> (8 * i)) & 0xFF), key + i, mask=(kept & (1 << (8 * i))) != 0)


@triton.jit
def _compact(
    mapped: tl.tensor, own: tl.tensor, target: tl.tensor, ranks: tl.tensor, row_words: tl.tensor,
    capacity: tl.tensor,
    BLOCK: tl.constexpr, UNIT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Write to `target` the keys that are 0 in one of two rows, ascending, zeros behind them; return their count.

    Four keys are one word of a row, and a scan counts two words at once: with one load and one scan for each key the
    kernel was three times as long. Rows are padded with ones to a multiple of 2 BLOCK words. UNIT not 0: `ranks` gets
    the number of keys before every UNIT-th word, and before the end.
    """
    lane = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)
    for start in range(0, row_words, 2 * BLOCK):
        word = start + lane
        left, left_upto = _kept(mapped, own, word)
        right, right_upto = _kept(mapped, own, word + BLOCK)
        pair = (left_upto >> 24) | (right_upto >> 24 << 16)
        end = tl.cumsum(pair, axis=0)
        total = tl.sum(pair, axis=0)
        half = count + (total & 0xFFFF)
        left_end, right_end = count + (end & 0xFFFF), half + (end >> 16)
        _write(target, capacity, 4 * word, left, left_upto, left_end)
        _write(target, capacity, 4 * (word + BLOCK), right, right_upto, right_end)
        if UNIT:
            first = word % UNIT == 0
            tl.store(ranks + word // UNIT, left_end - (left_upto >> 24), mask=first)
            tl.store(ranks + (word + BLOCK) // UNIT, right_end - (right_upto >> 24), mask=first)
        count = half + (total >> 16)
    if UNIT:
        tl.store(ranks + row_words // UNIT, count)
    for start in range(count, capacity, BLOCK):
        tl.store(target + start + lane, 0, mask=start + lane < capacity)
    return count


# That the length of rows is a multiple of 16 is kept from the compiler: it would load four words a thread and then
# pass every pointer through shared memory, as neighbours must store to neighbouring places.
@triton.jit(do_not_specialize=["row_words"])
def gather_kernel(
    absent: tl.tensor, fixed: tl.tensor, sources: tl.tensor, out: tl.tensor, out_counts: tl.tensor,
    tiles: tl.tensor, source_tiles: tl.tensor, row_words: tl.tensor, capacity: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Write the keys that are 0 in the source tile's row or in the tile's own row, ascending, zeros behind them."""
    row = tl.program_id(0)
    tile, source = _tile_and_source(row, sources, tiles, source_tiles)
    mapped, own = absent + source * row_words, fixed + tile.to(tl.int64) * row_words
    target = out + row.to(tl.int64) * capacity
    count = _compact(mapped, own, target, target, row_words, capacity, BLOCK, 0)
    tl.store(out_counts + row, count)


@triton.jit(do_not_specialize=["row_words"])
def compact_kernel(
    absent: tl.tensor, sinks: tl.tensor, lists: tl.tensor, ranks: tl.tensor, row_words: tl.tensor,
    capacity: tl.tensor,
    BLOCK: tl.constexpr, UNIT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the list of one source tile, sinks included, windows not; ranks [rows, row_words / UNIT + 1]."""
    row = tl.program_id(0).to(tl.int64)
    mapped = absent + row * row_words
    known = ranks + row * (row_words // UNIT + 1)
    _compact(mapped, sinks, lists + row * capacity, known, row_words, capacity, BLOCK, UNIT)


@triton.jit(do_not_specialize=["row_words", "capacity"])
def spread_kernel(
    absent: tl.tensor, fixed: tl.tensor, hulls: tl.tensor, sources: tl.tensor, lists: tl.tensor,
    ranks: tl.tensor, out: tl.tensor, out_counts: tl.tensor, tiles: tl.tensor, source_tiles: tl.tensor,
    row_words: tl.tensor, capacity: tl.tensor,
    BLOCK: tl.constexpr, UNIT: tl.constexpr,
) -> None:  # fmt: skip
    """Write a source tile's list with the fixed keys of one target tile put in.

    All these keys are in the words of the tile's hull, but for the sinks, which are in the list already: so the list is
    copied in front of the hull, compacted anew within, and copied to later slots behind it, with the zeros at its end.
    """
    row = tl.program_id(0)
    tile, source = _tile_and_source(row, sources, tiles, source_tiles)
    mapped, own = absent + source * row_words, fixed + tile.to(tl.int64) * row_words
    target = out + row.to(tl.int64) * capacity
    source_list = lists + source * capacity
    known = ranks + source * (row_words // UNIT + 1)
    first = tl.load(hulls + 2 * tile)
    last = tl.load(hulls + 2 * tile + 1)
    front = tl.load(known + first)
    back = tl.load(known + last)
    listed = tl.load(known + row_words // UNIT)
    lane = tl.arange(0, BLOCK)
    count = front
    for start in range(first * UNIT, last * UNIT, BLOCK):
        word = start + lane
        inside = word < last * UNIT
        absence = tl.load(mapped + word, mask=inside, other=0x01010101) & tl.load(
            own + word, mask=inside, other=0x01010101
        )
        kept = absence ^ 0x01010101
        upto = kept * 0x01010101
        number = upto >> 24
        _write(target, capacity, 4 * word, kept, upto, count + tl.cumsum(number, axis=0))
        count += tl.sum(number, axis=0)
    added = count - back
    for start in range(0, capacity, BLOCK):
        slot = start + lane
        behind = slot >= count
        copied = ((slot < front) | behind) & (slot < capacity)
        key = tl.load(source_list + (slot - tl.where(behind, added, 0)), mask=copied, other=0)
        tl.store(target + slot, key, mask=copied)
    tl.store(out_counts + row, listed + added)
