// Attention over all keys (with LSE and entropy) or over the kept columns of each query tile.
//
// Per (batch row, head, tile): Q^T is packed once, scaled by scale * log2(e).  For each chunk of keys, S^T = K Q^T,
// an online softmax whose running maximum and sum are vectors over queries, then O = O * alpha + P V.
#include <atomic>
#include <vector>

#include "pool.h"
#include "tiles.h"

namespace sparvar {
namespace {

struct AttentionArguments {
    Operand q, k, v, out, correction;   // correction.data is 0 where there is none
    int64_t batch, heads, keys, dim, dtype, correction_dtype;
    Geometry geometry;
    int64_t indices, indices_batch, indices_head, indices_tile;  // 0: every key
    int64_t counts, counts_batch, counts_head, counts_tile, capacity;
    int64_t lse, entropy;               // [B, H, N] contiguous, 0 where they are not wanted
    int64_t starts, rows;               // int32[G + 1]: tile g holds the rows starts[g]..starts[g + 1] of `rows`; or 0
    int64_t alive;                      // bool[T]: keys that exist, others are left out of every list; or 0
    int64_t threads;
    double scale;
    int64_t failure;                    // int64[5]: b, h, tile, what is wrong, its value
};

enum Failure : int64_t { OK = 0, BAD_COUNT = 1, BAD_INDEX = 2, NOT_ASCENDING = 3, BAD_START = 5, NONE_ALIVE = 6 };

struct State {  // of the queries in one pass
    float *packed, *out, *peak, *sum, *energy, *alpha, *s;
    Rows keys, values;
};

// Turns S^T into P^T in place and updates maximum, sum, energy and alpha of one group.
// Energy is E = sum p * x with x = log2 p; moving the maximum from m to m' makes it alpha * (E + (m - m') * l).
template <int VECS, bool ENTROPY>
void softmax(float* s, int64_t keys, const vf* chunk_peak, float* peak, float* sum, float* energy, float* alpha) {
    vf top[VECS], l[VECS], e[VECS];
    for (int v = 0; v < VECS; ++v) {
        const vf old = load(peak + v * VL);
        top[v] = vmax(old, chunk_peak[v]);
        const vf factor = exp2v(old - top[v]);
        store(peak + v * VL, top[v]);
        store(alpha + v * VL, factor);
        l[v] = load(sum + v * VL);
        if (ENTROPY) e[v] = factor * (load(energy + v * VL) + vmax(splat(-126.0f), old - top[v]) * l[v]);
        l[v] *= factor;
    }
    for (int64_t j = 0; j < keys; ++j, s += LDS)
        for (int v = 0; v < VECS; ++v) {
            const vf x = load(s + v * VL) - top[v];
            const vf p = exp2v(x);
            l[v] += p;
            if (ENTROPY) e[v] += p * vmax(splat(-126.0f), x);
            store(s + v * VL, p);
        }
    for (int v = 0; v < VECS; ++v) {
        store(sum + v * VL, l[v]);
        if (ENTROPY) store(energy + v * VL, e[v]);
    }
}

template <bool ENTROPY>
void attend(State& state, int64_t queries, int64_t keys, int64_t dim) {
    const int64_t padded = state.values.padded, vectors = padded / VL;
    const float* packed = state.packed;
    for (int64_t first = 0; first < queries; first += GROUP) {
        const int64_t live = queries - first < GROUP ? queries - first : GROUP;
        with_vectors(group_vectors(queries, first), [&](auto count) {
            constexpr int VECS = decltype(count)::value;
            vf peak[VECS];
            for (int v = 0; v < VECS; ++v) peak[v] = load(state.peak + first + v * VL);
            scores<VECS, true>(state.keys.pointer, keys, packed, dim, state.s, peak);
            softmax<VECS, ENTROPY>(state.s, keys, peak, state.peak + first, state.sum + first,
                                   state.energy + first, state.alpha);
            packed += VECS * VL * dim;
        });
        values(state.values.pointer, keys, vectors, state.s, live, state.alpha, state.out + first * padded, padded);
    }
}

void finish(const AttentionArguments& a, const State& state, int64_t b, int64_t h, const Tile& tile, int64_t first,
            int64_t queries) {
    alignas(64) float extra[MAX_DIM];
    const int64_t item = item_size(a.dtype);
    for (int64_t i = 0; i < queries; ++i) {
        const int64_t n = tile.row(first + i);
        float* row = state.out + i * state.values.padded;
        const float inverse = 1.0f / state.sum[i];
        for (int64_t d = 0; d < a.dim; ++d) row[d] *= inverse;
        if (a.correction.data) {
            to_f32(a.correction.at(b, h, n, item_size(a.correction_dtype)), a.correction_dtype, a.dim, extra);
            for (int64_t d = 0; d < a.dim; ++d) row[d] += extra[d];
        }
        from_f32(row, a.dtype, a.dim, const_cast<char*>(a.out.at(b, h, n, item)));
        const int64_t flat = (b * a.heads + h) * a.geometry.grid_h * a.geometry.grid_w + n;
        const float log_sum = a.lse ? __builtin_log2f(state.sum[i]) : 0.0f;
        if (a.lse) reinterpret_cast<float*>(a.lse)[flat] = (state.peak[i] + log_sum) * LN2;
        if (a.entropy) {
            const float nats = (log_sum - state.energy[i] * inverse) * LN2;
            reinterpret_cast<float*>(a.entropy)[flat] = nats < 0.0f ? 0.0f : nats;  // rounding only: H >= 0
        }
    }
}

void attend_tile(const AttentionArguments& a, int64_t task, std::atomic<int64_t>& failed) {
    const int64_t tiles = a.geometry.tiles(), g = task % tiles, h = task / tiles % a.heads, b = task / tiles / a.heads;
    const int32_t* starts = reinterpret_cast<const int32_t*>(a.starts);
    const Tile tile = starts ? Tile(starts[g], starts[g + 1] - starts[g]) : Tile(a.geometry, g);
    const int32_t* index = nullptr;
    int64_t kept = a.keys;
    const auto fail = [&](Failure what, int64_t value) {
        int64_t expected = OK;
        if (!failed.compare_exchange_strong(expected, what)) return;
        const int64_t report[5] = {b, h, g, what, value};
        std::memcpy(reinterpret_cast<void*>(a.failure), report, sizeof report);
    };
    if (starts) {
        const bool whole = (g > 0 || starts[0] == 0) && (g + 1 < tiles || starts[tiles] == a.rows);
        if (starts[g] < 0 || starts[g + 1] < starts[g] || starts[g + 1] > a.rows || !whole)
            return fail(BAD_START, starts[g + 1]);
        if (tile.queries == 0) return;
    }
    if (a.indices) {
        index = reinterpret_cast<const int32_t*>(a.indices) + b * a.indices_batch + h * a.indices_head +
                g * a.indices_tile;
        kept = reinterpret_cast<const int32_t*>(a.counts)[b * a.counts_batch + h * a.counts_head + g * a.counts_tile];
        if (kept < 1 || kept > a.capacity) return fail(BAD_COUNT, kept);
    }
    std::vector<int32_t> living;
    if (index && a.alive) {
        const char* alive = reinterpret_cast<const char*>(a.alive);
        living.reserve(size_t(kept));
        int64_t previous = -1;
        for (int64_t i = 0; i < kept; ++i) {
            if (index[i] < 0 || index[i] >= a.keys) return fail(BAD_INDEX, index[i]);
            if (index[i] <= previous) return fail(NOT_ASCENDING, index[i]);
            previous = index[i];
            if (alive[index[i]]) living.push_back(index[i]);
        }
        index = living.data();
        kept = int64_t(living.size());
        if (kept < 1) return fail(NONE_ALIVE, 0);
    }

    const int64_t padded = round_up(a.dim, VL), widest = MAX_QUERIES;
    Arena arena{static_cast<char*>(scratch(size_t(
        4 * (widest * a.dim + widest * padded + 4 * widest + CHUNK * LDS + 2 * CHUNK * padded) + 16 * 64)))};
    State state;
    state.packed = arena.floats(widest * a.dim);
    state.out = arena.floats(widest * padded);
    state.peak = arena.floats(widest);
    state.sum = arena.floats(widest);
    state.energy = arena.floats(widest);
    state.alpha = arena.floats(widest);
    state.s = arena.floats(CHUNK * LDS);
    state.keys.buffer = arena.floats(CHUNK * padded);
    state.values.buffer = arena.floats(CHUNK * padded);
    state.keys.padded = a.dim;  // only the second product reads whole vectors of a row
    state.values.padded = padded;

    for (int64_t first = 0; first < tile.queries; first += MAX_QUERIES) {
        const int64_t queries = tile.queries - first < MAX_QUERIES ? tile.queries - first : MAX_QUERIES;
        pack_queries(a.q, a.dtype, b, h, tile, first, queries, a.dim, float(a.scale) * LOG2E, state.packed);
        std::memset(state.out, 0, size_t(queries * padded) * 4);
        for (int64_t i = 0; i < round_up(queries, VL); ++i) {
            state.peak[i] = -__builtin_inff();
            state.sum[i] = state.energy[i] = 0.0f;
        }
        int64_t previous = -1;
        for (int64_t j = 0; j < kept; j += CHUNK) {
            const int64_t keys = kept - j < CHUNK ? kept - j : CHUNK;
            if (index && first == 0) {  // checked before any row is read
                for (int64_t i = j; i < j + keys; ++i) {
                    if (index[i] < 0 || index[i] >= a.keys) return fail(BAD_INDEX, index[i]);
                    if (index[i] <= previous) return fail(NOT_ASCENDING, index[i]);
                    previous = index[i];
                }
            }
            state.keys.take(a.k, a.dtype, b, h, a.dim, index ? index + j : nullptr, j, keys);
            state.values.take(a.v, a.dtype, b, h, a.dim, index ? index + j : nullptr, j, keys);
            if (a.entropy) attend<true>(state, queries, keys, a.dim);
            else attend<false>(state, queries, keys, a.dim);
        }
        finish(a, state, b, h, tile, first, queries);
    }
}

}  // namespace
}  // namespace sparvar

extern "C" __attribute__((visibility("default"))) int64_t sparvar_attention(const void* arguments) {
    sparvar::AttentionArguments a;
    std::memcpy(&a, arguments, sizeof a);
    std::atomic<int64_t> failed{sparvar::OK};
    auto body = [&](int64_t task) {
        if (failed.load(std::memory_order_relaxed) == sparvar::OK) sparvar::attend_tile(a, task, failed);
    };
    sparvar::parallel(a.batch * a.heads * a.geometry.tiles(), a.threads, body);
    return failed.load();
}
