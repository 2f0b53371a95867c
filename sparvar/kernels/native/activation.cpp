// Bias and sigmoid-shaped activation of a block of rows, in place: one pass where torch makes three.
#include <cstdint>
#include <cstring>

#include "pool.h"
#include "simd.h"

namespace {

using namespace sparvar;

struct Arguments {
    int64_t hidden, bias, rows, columns;  // fp32 [rows, columns] contiguous; bias fp32 [columns] or 0
    int64_t cubic;                        // 1: tanh form of GELU, 0: SiLU
    int64_t threads;
};

// tanh GELU is x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), SiLU is x * sigmoid(x).
template <bool CUBIC>
inline vf activate(vf x) {
    const float log2e = 1.44269504f;
    const vf slope = CUBIC ? splat(-1.59576912f * log2e) * (splat(1.0f) + splat(0.044715f) * x * x) : splat(-log2e);
    vf power = slope * x;
    power = power < splat(126.0f) ? power : splat(126.0f);  // 2^126: the result is 0 to fp32's precision of x
    return x / (splat(1.0f) + exp2v(power));
}

template <bool CUBIC>
void row(float* __restrict x, const float* __restrict bias, int64_t columns) {
    int64_t i = 0;
    for (; i + VL <= columns; i += VL) store(x + i, activate<CUBIC>(bias ? load(x + i) + load(bias + i) : load(x + i)));
    if (i < columns) {
        float rest[VL] = {};
        for (int64_t j = i; j < columns; ++j) rest[j - i] = x[j] + (bias ? bias[j] : 0.0f);
        store(rest, activate<CUBIC>(load(rest)));
        for (int64_t j = i; j < columns; ++j) x[j] = rest[j - i];
    }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int64_t sparvar_bias_activation(const void* arguments) {
    Arguments a;
    std::memcpy(&a, arguments, sizeof a);
    const int64_t step = 16, tasks = (a.rows + step - 1) / step;
    auto body = [&](int64_t task) {
        const int64_t end = (task + 1) * step < a.rows ? (task + 1) * step : a.rows;
        for (int64_t r = task * step; r < end; ++r) {
            float* x = reinterpret_cast<float*>(a.hidden) + r * a.columns;
            const float* bias = reinterpret_cast<const float*>(a.bias);
            if (a.cubic) row<true>(x, bias, a.columns);
            else row<false>(x, bias, a.columns);
        }
    };
    parallel(tasks, a.threads, body);
    return 0;
}
