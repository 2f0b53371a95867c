// Vector type, exp2 and dtype conversions shared by the native kernels.
//
// The vector width is chosen at compile time.  A register block is BLOCK rows by NV vectors: 6 x 4 needs 24
// accumulators of the 32 registers of AVX-512 and NEON, 6 x 2 needs 12 of the 16 of AVX2 and SSE2.
#pragma once
#include <cstdint>
#include <cstring>

namespace sparvar {

#if defined(__AVX512F__)
constexpr int VL = 16, NV = 4;
#elif defined(__AVX2__)
constexpr int VL = 8, NV = 2;
#elif defined(__aarch64__)
constexpr int VL = 4, NV = 4;
#else
constexpr int VL = 4, NV = 2;
#endif
constexpr int BLOCK = 6;
constexpr int GROUP = NV * VL;  // queries in one group of S^T

typedef float vf __attribute__((vector_size(VL * 4), aligned(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(VL * 4)));

static inline vf load(const float* p) { vf r; std::memcpy(&r, p, sizeof r); return r; }
static inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
static inline vf splat(float x) { return x - vf{}; }
static inline vi as_int(vf x) { vi r; std::memcpy(&r, &x, sizeof r); return r; }
static inline vf as_float(vi x) { vf r; std::memcpy(&r, &x, sizeof r); return r; }
// A NaN in b survives, a NaN in a does not: callers put the constant or the running value first.
static inline vf vmax(vf a, vf b) { return b < a ? a : b; }
static inline float hsum(vf x) {
    float parts[VL];
    store(parts, x);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    return parts[0];
}

// 2^x for x <= 0 (any x below 127 works).  x is clamped at -126, so the result is never subnormal: what should be
// 0 is at most 1.2e-38.  Degree-5 minimax polynomial on [-0.5, 0.5] with 2^0 = 1 exactly (9.2e-8), plus
// rounding: within 2 ulp (2.4e-7 relative).
static inline vf exp2v(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    x = vmax(splat(-126.0f), x);
    const vf t = x + magic;
    const vf f = x - (t - magic);
    vf p = splat(1.3264727e-3f);
    p = p * f + splat(9.6715126e-3f);
    p = p * f + splat(5.5507337e-2f);
    p = p * f + splat(2.4022242e-1f);
    p = p * f + splat(6.9314698e-1f);
    p = p * f + splat(1.0f);
    return as_float(as_int(p) + (as_int(t) << 23));
}

enum DType : int64_t { F32 = 0, BF16 = 1, F16 = 2 };
static inline int64_t item_size(int64_t dtype) { return dtype == F32 ? 4 : 2; }

static inline uint32_t bits(float x) { uint32_t u; std::memcpy(&u, &x, 4); return u; }
static inline float from_bits(uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }

static inline float bf16_to_f32(uint16_t h) { return from_bits(uint32_t(h) << 16); }
static inline uint16_t f32_to_bf16(float x) {
    const uint32_t u = bits(x);
    return x != x ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
// No arithmetic on subnormal numbers: flush-to-zero mode must not change the result.
static inline float f16_to_f32(uint16_t h) {
    const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const uint32_t normal = magnitude + (112u << 23) + (exponent == 0x0f800000 ? 112u << 23 : 0u);
    const uint32_t tiny = bits(from_bits(magnitude + (113u << 23)) - from_bits(113u << 23));
    return from_bits((exponent == 0 ? tiny : normal) | (uint32_t(h & 0x8000) << 16));
}
static inline uint16_t f32_to_f16(float x) {
    uint32_t u = bits(x);
    const uint32_t sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    if (u >= 0x47800000) return uint16_t(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (u < 0x38800000)  // subnormal result: let the adder round
        return uint16_t(sign | (bits(from_bits(u) + 0.5f) - 0x3f000000u));
    return uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));
}

static inline void to_f32(const void* source, int64_t dtype, int64_t count, float* __restrict target) {
    if (dtype == F32) {
        std::memcpy(target, source, size_t(count) * 4);
    } else {
        const uint16_t* __restrict half = static_cast<const uint16_t*>(source);
        if (dtype == BF16) for (int64_t i = 0; i < count; ++i) target[i] = bf16_to_f32(half[i]);
        else for (int64_t i = 0; i < count; ++i) target[i] = f16_to_f32(half[i]);
    }
}
static inline void from_f32(const float* source, int64_t dtype, int64_t count, void* target) {
    if (dtype == F32) {
        std::memcpy(target, source, size_t(count) * 4);
    } else {
        uint16_t* half = static_cast<uint16_t*>(target);
        if (dtype == BF16) for (int64_t i = 0; i < count; ++i) half[i] = f32_to_bf16(source[i]);
        else for (int64_t i = 0; i < count; ++i) half[i] = f32_to_f16(source[i]);
    }
}

}  // namespace sparvar
