// GELU and its gradient; the reference is cpu.rs.
#include "device/map.cuh"
#include "gelu/gelu.cuh"

#define DEFINE(T, suffix)                                                                                                            \
    KERNEL(gelu_##suffix, (const T* x, T* out, size_t n, int fours)) {                                                               \
        map<T>(x, nullptr, nullptr, out, n, fours, [](float x_, float, float) { return gelu(x_); });                                 \
    }                                                                                                                                \
    KERNEL(gelu_backward_##suffix, (const T* g, const T* x, T* out, size_t n, int fours)) {                                          \
        map<T>(g, x, nullptr, out, n, fours, [](float g_, float x_, float) { return g_ * gelu_slope(x_); });                         \
    }
FOR_EACH_TYPE(DEFINE)
#undef DEFINE
