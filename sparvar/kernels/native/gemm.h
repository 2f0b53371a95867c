// The two register-blocked products of attention.  Keys and values are read from row pointers, never gathered.
#pragma once
#include "simd.h"

namespace sparvar {

// Leading dimension of S^T [keys, GROUP]: an odd number of cache lines, or the strips of BLOCK queries which the
// second product reads would all fall into a few sets of the L1 cache.
constexpr int LDS = GROUP % 32 == 0 ? GROUP + 16 : GROUP;

// S^T[i, :] = sum_d rows[i][d] * qt[d, :], and peak = max(peak, S^T[i, :]) where PEAK.
template <int KEYS, int VECS, bool PEAK>
static inline void score_block(const float* const* rows, const float* qt, int64_t dim, float* s, vf* peak) {
    vf acc[KEYS][VECS];
    for (int i = 0; i < KEYS; ++i)
        for (int v = 0; v < VECS; ++v) acc[i][v] = vf{};
    const float* row[KEYS];
    for (int i = 0; i < KEYS; ++i) row[i] = rows[i];
    for (int64_t d = 0; d < dim; ++d, qt += VECS * VL) {
        vf q[VECS];
        for (int v = 0; v < VECS; ++v) q[v] = load(qt + v * VL);
#pragma GCC unroll 8
        for (int i = 0; i < KEYS; ++i) {
            const vf k = splat(row[i][d]);
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) acc[i][v] += k * q[v];
        }
    }
    for (int i = 0; i < KEYS; ++i)
        for (int v = 0; v < VECS; ++v) {
            store(s + i * LDS + v * VL, acc[i][v]);
            if (PEAK) peak[v] = vmax(peak[v], acc[i][v]);
        }
}

static inline void prefetch_row(const float* row, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(row + d);
}

// S^T of `keys` rows.  The next block of rows is prefetched while this one is multiplied.
template <int VECS, bool PEAK>
static void scores(const float* const* rows, int64_t keys, const float* qt, int64_t dim, float* s, vf* peak) {
    int64_t j = 0;
    for (; j + BLOCK <= keys; j += BLOCK) {
        const int64_t ahead = j + 2 * BLOCK <= keys ? j + 2 * BLOCK : keys;
        for (int64_t i = j + BLOCK; i < ahead; ++i) prefetch_row(rows[i], dim);
        score_block<BLOCK, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak);
    }
    switch (keys - j) {
        case 5: score_block<5, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak); break;
        case 4: score_block<4, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak); break;
        case 3: score_block<3, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak); break;
        case 2: score_block<2, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak); break;
        case 1: score_block<1, VECS, PEAK>(rows + j, qt, dim, s + j * LDS, peak); break;
        default: break;
    }
}

// out[i, :] = out[i, :] * alpha[i] + sum_j p[j, i] * rows[j][:]
template <int QUERIES, int VECS>
static inline void value_block(const float* const* rows, int64_t keys, int64_t offset, const float* p,
                               const float* alpha, float* out, int64_t ldo) {
    vf acc[QUERIES][VECS];
    for (int i = 0; i < QUERIES; ++i)
        for (int v = 0; v < VECS; ++v) acc[i][v] = load(out + i * ldo + v * VL) * splat(alpha[i]);
    for (int64_t j = 0; j < keys; ++j, p += LDS) {
        const float* row = rows[j] + offset;
        vf x[VECS];
        for (int v = 0; v < VECS; ++v) x[v] = load(row + v * VL);
#pragma GCC unroll 8
        for (int i = 0; i < QUERIES; ++i) {
            const vf w = splat(p[i]);
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) acc[i][v] += w * x[v];
        }
    }
    for (int i = 0; i < QUERIES; ++i)
        for (int v = 0; v < VECS; ++v) store(out + i * ldo + v * VL, acc[i][v]);
}

template <int VECS>
static void values_slice(const float* const* rows, int64_t keys, int64_t offset, const float* p, int64_t queries,
                         const float* alpha, float* out, int64_t ldo) {
    int64_t i = 0;
    for (; i + BLOCK <= queries; i += BLOCK)
        value_block<BLOCK, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo);
    switch (queries - i) {
        case 5: value_block<5, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo); break;
        case 4: value_block<4, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo); break;
        case 3: value_block<3, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo); break;
        case 2: value_block<2, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo); break;
        case 1: value_block<1, VECS>(rows, keys, offset, p + i, alpha + i, out + i * ldo, ldo); break;
        default: break;
    }
}

// Calls `call` with the number of vectors as a compile-time constant.
template <int N> struct Count { static constexpr int value = N; };
template <class F>
static inline void with_vectors(int64_t vectors, F&& call) {
    switch (vectors) {
        case 1: call(Count<1>{}); break;
        case 2: call(Count<2>{}); break;
#if defined(__AVX512F__) || defined(__aarch64__)
        case 3: call(Count<3>{}); break;
        case 4: call(Count<4>{}); break;
#endif
        default: break;
    }
}

// The value dimension is cut into slices of at most NV vectors, as even as possible (5 becomes 3 + 2, not 4 + 1).
static inline void values(const float* const* rows, int64_t keys, int64_t vectors, const float* p, int64_t queries,
                   const float* alpha, float* out, int64_t ldo) {
    int64_t slices = (vectors + NV - 1) / NV, offset = 0;
    for (; slices > 0; --slices) {
        const int64_t width = (vectors + slices - 1) / slices;
        with_vectors(width, [&](auto count) {
            values_slice<decltype(count)::value>(rows, keys, offset, p, queries, alpha, out + offset, ldo);
        });
        offset += width * VL;
        vectors -= width;
    }
}

}  // namespace sparvar
