// Softmax mass that the queries of each tile give to each key: sum_i exp(s_ij - lse_i).
#include "pool.h"
#include "tiles.h"

namespace sparvar {
namespace {

struct ColumnSumsArguments {
    Operand q, k;
    int64_t batch, heads, keys, dim, dtype;
    Geometry geometry;
    int64_t lse;   // [B, H, N] contiguous, nats
    int64_t sums;  // [B, H, G, T] contiguous
    int64_t threads;
    double scale;
};

// mass[j, :] += exp2(S^T[j, :] - lse), one vector of partial sums per key.
template <int VECS>
void add_mass(const float* s, int64_t keys, const float* lse, float* mass) {
    vf normaliser[VECS];
    for (int v = 0; v < VECS; ++v) normaliser[v] = load(lse + v * VL);
    for (int64_t j = 0; j < keys; ++j, s += LDS) {
        vf total = load(mass + j * VL);
        for (int v = 0; v < VECS; ++v) total += exp2v(load(s + v * VL) - normaliser[v]);
        store(mass + j * VL, total);
    }
}

void sum_tile(const ColumnSumsArguments& a, int64_t task) {
    const int64_t tiles = a.geometry.tiles(), g = task % tiles, h = task / tiles % a.heads, b = task / tiles / a.heads;
    const Tile tile(a.geometry, g);
    const float* lse = reinterpret_cast<const float*>(a.lse) +
                       (b * a.heads + h) * a.geometry.grid_h * a.geometry.grid_w;
    float* sums = reinterpret_cast<float*>(a.sums) + task * a.keys;
    // Sampled queries stand for all: the row still sums to the tile's query count.
    const float weight = float(tile.queries) / float(tile.sampled);

    Arena arena{static_cast<char*>(
        scratch(size_t(4 * (MAX_QUERIES * a.dim + MAX_QUERIES + CHUNK * (LDS + VL + a.dim)) + 16 * 64)))};
    float* packed = arena.floats(MAX_QUERIES * a.dim);
    float* normaliser = arena.floats(MAX_QUERIES);
    float* s = arena.floats(CHUNK * LDS);
    float* mass = arena.floats(CHUNK * VL);
    Rows rows;
    rows.buffer = arena.floats(CHUNK * a.dim);
    rows.padded = a.dim;

    for (int64_t first = 0; first < tile.sampled; first += MAX_QUERIES) {
        const int64_t queries = tile.sampled - first < MAX_QUERIES ? tile.sampled - first : MAX_QUERIES;
        pack_queries(a.q, a.dtype, b, h, tile, first, queries, a.dim, float(a.scale) * LOG2E, packed);
        for (int64_t i = 0; i < round_up(queries, VL); ++i)  // a lane without a query adds at most 2^-126
            normaliser[i] = i < queries ? lse[tile.row(first + i)] * LOG2E : 1e30f;
        for (int64_t j = 0; j < a.keys; j += CHUNK) {
            const int64_t keys = a.keys - j < CHUNK ? a.keys - j : CHUNK;
            rows.take(a.k, a.dtype, b, h, a.dim, nullptr, j, keys);
            std::memset(mass, 0, size_t(keys * VL) * 4);
            const float* group = packed;
            for (int64_t start = 0; start < queries; start += GROUP)
                with_vectors(group_vectors(queries, start), [&](auto count) {
                    constexpr int VECS = decltype(count)::value;
                    scores<VECS, false>(rows.pointer, keys, group, a.dim, s, nullptr);
                    add_mass<VECS>(s, keys, normaliser + start, mass);
                    group += VECS * VL * a.dim;
                });
            for (int64_t i = 0; i < keys; ++i) {
                const float total = hsum(load(mass + i * VL)) * weight;
                sums[j + i] = first == 0 ? total : sums[j + i] + total;
            }
        }
    }
}

}  // namespace
}  // namespace sparvar

extern "C" __attribute__((visibility("default"))) int64_t sparvar_column_sums(const void* arguments) {
    sparvar::ColumnSumsArguments a;
    std::memcpy(&a, arguments, sizeof a);
    auto body = [&](int64_t task) { sparvar::sum_tile(a, task); };
    sparvar::parallel(a.batch * a.heads * a.geometry.tiles(), a.threads, body);
    return 0;
}
