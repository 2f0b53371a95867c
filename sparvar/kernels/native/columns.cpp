// Index lists: the largest entries of rows, and unions of ranges, rectangles and mapped keys.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "pool.h"

namespace {

struct SelectArguments {
    int64_t sums, rows, columns, budget;  // fp32 [rows, columns] contiguous
    int64_t indices, counts;              // int32 [rows, budget], [rows]
    int64_t threads;
};

// Monotone map of floats to unsigned integers: -0 equals +0, every NaN is the largest, whatever its sign or payload
// (x86 makes negative ones of 0 / 0 and inf - inf).
inline uint32_t order(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    const uint32_t magnitude = u & 0x7fffffffu;
    const uint32_t key = u != magnitude ? 0x80000000u - magnitude : 0x80000000u + magnitude;
    return magnitude > 0x7f800000u ? 0xffffffffu : key;
}

// Bisection over the 32 bits of the threshold: each step is one vectorised count over a row in the L1 cache.
void select_row(const SelectArguments& a, int64_t row) {
    const float* source = reinterpret_cast<const float*>(a.sums) + row * a.columns;
    int32_t* target = reinterpret_cast<int32_t*>(a.indices) + row * a.budget;
    const int32_t columns = int32_t(a.columns), budget = int32_t(a.budget);
    uint32_t* __restrict keys = static_cast<uint32_t*>(sparvar::scratch(size_t(a.columns) * 4));
    uint32_t lowest = 0xffffffffu, highest = 0;
    for (int32_t j = 0; j < columns; ++j) keys[j] = order(source[j]);
    for (int32_t j = 0; j < columns; ++j) lowest = keys[j] < lowest ? keys[j] : lowest;
    for (int32_t j = 0; j < columns; ++j) highest = keys[j] > highest ? keys[j] : highest;
    while (lowest < highest) {  // the largest threshold that at least `budget` keys reach
        const uint32_t middle = lowest + (highest - lowest) / 2 + 1;
        int32_t reach = 0;
        for (int32_t j = 0; j < columns; ++j) reach += keys[j] >= middle;
        if (reach >= budget) lowest = middle; else highest = middle - 1;
    }
    int32_t above = 0, n = 0;
    for (int32_t j = 0; j < columns; ++j) above += keys[j] > lowest;
    int32_t ties = budget - above;  // of the keys at the threshold the first ones are taken
    for (int32_t j = 0; j < columns && n < budget; ++j) {
        const int32_t tie = keys[j] == lowest && ties > 0;
        target[n] = j;
        n += tie | int32_t(keys[j] > lowest);
        ties -= tie;
    }
    reinterpret_cast<int32_t*>(a.counts)[row] = budget;
}

struct UnionArguments {
    int64_t batch, heads, tiles, total, sinks;  // `sinks` leading keys are in every list
    int64_t boxes, boxes_per_tile;              // int32 [tiles, boxes_per_tile, 6]: base, width, y0, y1, x0, x1
    int64_t sources;                            // int32 [tiles]: the source tile of each tile
    int64_t indices, indices_batch, indices_head, indices_tile;  // 0: no mapped keys
    int64_t counts, counts_batch, counts_head, counts_tile, source_capacity;
    int64_t spans, source_total;                // int32 [source_total, 4]: first key, rows, columns, row step
    int64_t out, out_counts, capacity;          // int32 [B, H, G, capacity], [B, H, G]
    int64_t threads;
    int64_t failure;                            // int64[5]: b, h, source tile, what is wrong, its value
};

enum Failure : int64_t { OK = 0, BAD_COUNT = 1, BAD_INDEX = 2, OVERFLOWED = 4 };

inline void set_range(uint64_t* bitmap, int64_t begin, int64_t end) {  // [begin, end)
    if (begin >= end) return;
    const int64_t first = begin >> 6, last = (end - 1) >> 6;
    const uint64_t head = ~uint64_t(0) << (begin & 63), tail = ~uint64_t(0) >> (63 - ((end - 1) & 63));
    if (first == last) {
        bitmap[first] |= head & tail;
        return;
    }
    bitmap[first] |= head;
    for (int64_t word = first + 1; word < last; ++word) bitmap[word] = ~uint64_t(0);
    bitmap[last] |= tail;
}

void unite(const UnionArguments& a, int64_t task, std::atomic<int64_t>& failed) {
    const int64_t g = task % a.tiles, h = task / a.tiles % a.heads, b = task / a.tiles / a.heads;
    const auto fail = [&](int64_t tile, Failure what, int64_t value) {
        int64_t expected = OK;
        if (!failed.compare_exchange_strong(expected, what)) return;
        const int64_t report[5] = {b, h, tile, what, value};
        std::memcpy(reinterpret_cast<void*>(a.failure), report, sizeof report);
    };
    const int64_t words = (a.total + 63) / 64;
    uint64_t* bitmap = static_cast<uint64_t*>(sparvar::scratch(size_t(words) * 8));
    std::memset(bitmap, 0, size_t(words) * 8);
    set_range(bitmap, 0, a.sinks);
    const int32_t* box = reinterpret_cast<const int32_t*>(a.boxes) + g * a.boxes_per_tile * 6;
    for (int64_t i = 0; i < a.boxes_per_tile; ++i, box += 6)
        for (int64_t y = box[2]; y < box[3]; ++y) {
            const int64_t row = box[0] + y * box[1];
            set_range(bitmap, row + box[4], row + box[5]);
        }
    if (a.indices) {
        const int64_t source = reinterpret_cast<const int32_t*>(a.sources)[g];
        const int32_t* index = reinterpret_cast<const int32_t*>(a.indices) + b * a.indices_batch +
                               h * a.indices_head + source * a.indices_tile;
        const int64_t kept = reinterpret_cast<const int32_t*>(
            a.counts)[b * a.counts_batch + h * a.counts_head + source * a.counts_tile];
        const int32_t* spans = reinterpret_cast<const int32_t*>(a.spans);
        if (kept < 1 || kept > a.source_capacity) return fail(source, BAD_COUNT, kept);
        for (int64_t j = 0; j < kept; ++j) {
            if (index[j] < 0 || index[j] >= a.source_total) return fail(source, BAD_INDEX, index[j]);
            const int32_t* span = spans + int64_t(index[j]) * 4;
            for (int64_t row = 0, first = span[0]; row < span[1]; ++row, first += span[3])
                for (int64_t key = first; key < first + span[2]; ++key) bitmap[key >> 6] |= uint64_t(1) << (key & 63);
        }
    }
    int32_t* out = reinterpret_cast<int32_t*>(a.out) + task * a.capacity;
    int64_t n = 0;
    for (int64_t word = 0; word < words; ++word) n += __builtin_popcountll(bitmap[word]);
    if (n > a.capacity) return fail(g, OVERFLOWED, n);
    reinterpret_cast<int32_t*>(a.out_counts)[task] = int32_t(n);
    for (int64_t word = 0; word < words; ++word)
        for (uint64_t left = bitmap[word]; left; left &= left - 1)
            *out++ = int32_t(word * 64 + __builtin_ctzll(left));
    std::memset(out, 0, size_t(a.capacity - n) * 4);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int64_t sparvar_select(const void* arguments) {
    SelectArguments a;
    std::memcpy(&a, arguments, sizeof a);
    auto body = [&](int64_t row) { select_row(a, row); };
    sparvar::parallel(a.rows, a.threads, body);
    return 0;
}

extern "C" __attribute__((visibility("default"))) int64_t sparvar_union(const void* arguments) {
    UnionArguments a;
    std::memcpy(&a, arguments, sizeof a);
    std::atomic<int64_t> failed{OK};
    auto body = [&](int64_t task) { unite(a, task, failed); };
    sparvar::parallel(a.batch * a.heads * a.tiles, a.threads, body);
    return failed.load();
}

extern "C" __attribute__((visibility("default"))) const char* sparvar_isa() {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "generic";
#endif
}
