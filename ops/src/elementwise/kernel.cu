// Sums with an activation, in one pass over memory; the reference is cpu.rs.
#include "device/map.cuh"

// NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(add_relu_##suffix, (const T* a, const T* b, T* out, size_t n, int fours)) {                                               \
        map<T>(a, b, nullptr, out, n, fours, [](float x, float y, float) { return relu(x + y); });                                   \
    }                                                                                                                                \
    KERNEL(relu_##suffix, (const T* x, T* out, size_t n, int fours)) {                                                               \
        map<T>(x, nullptr, nullptr, out, n, fours, [](float x_, float, float) { return relu(x_); });                                 \
    }                                                                                                                                \
    KERNEL(relu_backward_##suffix, (const T* y, const T* g, T* out, size_t n, int fours)) {                                          \
        map<T>(y, g, nullptr, out, n, fours, [](float y_, float g_, float) { return y_ <= 0.0f ? 0.0f : g_; });                      \
    }                                                                                                                                \
    KERNEL(relu_backward_sum_##suffix, (const T* y, const T* a, const T* b, T* out, size_t n, int fours)) {                          \
        map<T>(y, a, b, out, n, fours, [](float y_, float a_, float b_) { return y_ <= 0.0f ? 0.0f : a_ + b_; });                    \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
