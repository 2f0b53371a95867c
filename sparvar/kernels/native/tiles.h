// What attention and column sums share: the operands, the queries of a tile, and chunks of key rows.
#pragma once
#include <cstddef>

#include "gemm.h"

namespace sparvar {

// Every field is 8 bytes wide; the Python side packs them in this order.
struct Operand {
    int64_t data, batch, head, row;  // pointer and strides in elements; the last dimension is contiguous
    const char* at(int64_t b, int64_t h, int64_t r, int64_t item) const {
        return reinterpret_cast<const char*>(data) + (b * batch + h * head + r * row) * item;
    }
};

struct Geometry {
    int64_t grid_h, grid_w, tile_h, tile_w, stride;
    int64_t across() const { return (grid_w + tile_w - 1) / tile_w; }
    int64_t tiles() const { return (grid_h + tile_h - 1) / tile_h * across(); }
};

// The rows of Q that tile g holds, in raster order, every stride-th in both axes.
struct Tile {
    int64_t y0, x0, rows, columns, stride, grid_w, queries, sampled, per_row;
    Tile(const Geometry& geometry, int64_t g) : stride(geometry.stride), grid_w(geometry.grid_w) {
        y0 = g / geometry.across() * geometry.tile_h;
        x0 = g % geometry.across() * geometry.tile_w;
        rows = geometry.grid_h - y0 < geometry.tile_h ? geometry.grid_h - y0 : geometry.tile_h;
        columns = geometry.grid_w - x0 < geometry.tile_w ? geometry.grid_w - x0 : geometry.tile_w;
        queries = rows * columns;
        per_row = (columns + stride - 1) / stride;
        sampled = (rows + stride - 1) / stride * per_row;
    }
    // A run of rows instead of a rectangle: queries that were gathered in the order of their tiles.
    Tile(int64_t first, int64_t count)
        : y0(0), x0(first), rows(1), columns(count), stride(1), grid_w(0), queries(count), sampled(count),
          per_row(count > 0 ? count : 1) {}
    int64_t row(int64_t i) const { return (y0 + i / per_row * stride) * grid_w + x0 + i % per_row * stride; }
};

constexpr int64_t MAX_QUERIES = 256;  // a larger tile is done in passes: Q^T and O stay in the L2 cache
constexpr int64_t CHUNK = 126;        // keys whose scores are held at once, a multiple of BLOCK
constexpr int64_t MAX_DIM = 256;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

static inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
static inline int64_t group_vectors(int64_t queries, int64_t first) {
    const int64_t left = round_up(queries, VL) - first;
    return (left < GROUP ? left : GROUP) / VL;
}

// Q^T of `count` queries from `first` on, times `factor`: groups of GROUP queries, each [dim, vectors * VL];
// lanes past the last query are zero.
static inline void pack_queries(const Operand& q, int64_t dtype, int64_t b, int64_t h, const Tile& tile,
                                int64_t first, int64_t count, int64_t dim, float factor, float* packed) {
    alignas(64) float row[MAX_DIM];
    for (int64_t start = 0; start < count; start += GROUP) {
        const int64_t width = group_vectors(count, start) * VL;
        const int64_t last = count - start < width ? count - start : width;
        for (int64_t i = 0; i < last; ++i) {
            to_f32(q.at(b, h, tile.row(first + start + i), item_size(dtype)), dtype, dim, row);
            float* column = packed + i;
            for (int64_t d = 0; d < dim; ++d) column[d * width] = row[d] * factor;
        }
        for (int64_t d = 0; d < dim; ++d)
            for (int64_t i = last; i < width; ++i) packed[d * width + i] = 0.0f;
        packed += width * dim;
    }
}

// Pointers to fp32 rows.  fp32 rows of whole vectors are used where they lie; others are converted, zero padded to
// `padded` floats, into `buffer`.
struct Rows {
    const float* pointer[CHUNK];
    float* buffer;
    int64_t padded;

    void take(const Operand& x, int64_t dtype, int64_t b, int64_t h, int64_t dim, const int32_t* index,
              int64_t first, int64_t count) {
        const bool direct = dtype == F32 && dim == padded;
        const int64_t item = item_size(dtype), step = x.row * item;
        const char* base = x.at(b, h, 0, item);
        for (int64_t j = 0; j < count; ++j) {
            const char* source = base + (index ? int64_t(index[j]) : first + j) * step;
            if (direct) {
                pointer[j] = reinterpret_cast<const float*>(source);
                continue;
            }
            float* row = buffer + j * padded;
            to_f32(source, dtype, dim, row);
            for (int64_t d = dim; d < padded; ++d) row[d] = 0.0f;
            pointer[j] = row;
        }
    }
};

// Hands out pieces of one scratch allocation, each aligned to 64 bytes.
struct Arena {
    char* next;
    float* floats(int64_t count) {
        float* piece = reinterpret_cast<float*>(next);
        next += round_up(count * 4, 64);
        return piece;
    }
};

}  // namespace sparvar
